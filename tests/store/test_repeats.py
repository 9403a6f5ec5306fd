"""Where the records of sent requests are kept."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.rules.repeats import InDoubt, KeptAnswer, Record, UnderWay
from proxy.settings import Repeats
from proxy.store.repeats import ENTRY_BYTES, LocalRepeats, Owner, RepeatStore
from proxy.store.shared_repeats import SharedRepeats
from tests.kit.clock import FakeClock
from tests.kit.process import until
from tests.kit.redis import RedisServer, redis_server
from tests.store.test_connection import connected

LONDON, PARIS = Owner("l", "london"), Owner("p", "paris")
DOUBT = Record(sameness=b"s", request_id="1", sent_at=1.0, until=2.0, state=InDoubt())


def answer(size: int = 2) -> Record:
    return replace(DOUBT, state=KeptAnswer(202, "Accepted", (("A", "b"),), b"x" * size))


class Table:
    """A table in memory, its clock, and what it gave up of each account."""

    def __init__(self, **bounds: Any) -> None:
        self.clock = FakeClock()
        self.evicted: Counter[str] = Counter()
        self.store = LocalRepeats(
            Repeats(**bounds),
            clock=self.clock,
            on_evicted=lambda label: self.evicted.update([label]),
        )

    def states(self, *names: bytes) -> list[str]:
        records = [self.store.get(name) for name in names]
        return ["none" if one is None else type(one.state).__name__ for one in records]


async def test_a_full_table_gives_up_the_oldest_first() -> None:
    table = Table(max_entries=3)
    for name in (b"1", b"2", b"3", b"4"):
        table.store.put(LONDON, name, DOUBT, 60)
    assert table.states(b"1", b"2", b"3", b"4") == ["none", "InDoubt", "InDoubt", "InDoubt"]
    assert table.evicted == {"london": 1}


async def test_a_flood_costs_the_account_that_makes_it() -> None:
    table = Table(max_entries=10)
    for number in range(3):
        table.store.put(PARIS, b"p%d" % number, DOUBT, 60)
    for number in range(1000):
        table.store.put(LONDON, b"l%d" % number, DOUBT, 60)
    assert table.states(b"p0", b"p1", b"p2") == ["InDoubt"] * 3
    assert table.evicted == {"london": 993}


async def test_an_answer_that_is_given_up_stays_in_doubt() -> None:
    table = Table(max_bytes=3 * ENTRY_BYTES + 2200)
    for name in (b"1", b"2", b"3"):
        table.store.put(LONDON, name, answer(900), 60)
    assert table.states(b"1", b"2", b"3") == ["InDoubt", "KeptAnswer", "KeptAnswer"]


async def test_an_answer_that_was_delivered_is_given_up_whole() -> None:
    table = Table(max_bytes=3 * ENTRY_BYTES + 2200)
    table.store.put(LONDON, b"1", replace(answer(900), is_delivered=True), 60)
    table.store.put(LONDON, b"2", answer(900), 60)
    table.store.put(LONDON, b"3", answer(900), 60)
    assert table.states(b"1", b"2", b"3") == ["none", "KeptAnswer", "KeptAnswer"]


@pytest.mark.parametrize("size", [0, 5000])
async def test_very_many_lost_requests_stay_below_the_bounds(size: int) -> None:
    table = Table(max_entries=5000, max_bytes=2_000_000)
    for number in range(20_000):
        owner = Owner(f"{number % 7}", "other")
        table.store.put(owner, b"%d" % number, answer(size) if size else DOUBT, 60)
    assert len(table.store) <= 2_000_000 // ENTRY_BYTES
    assert table.states(b"19999")[0] != "none"
    assert table.states(b"0") == ["none"]


async def test_new_bounds_hold_at_once() -> None:
    table = Table()
    for number in range(10):
        table.store.put(LONDON, b"%d" % number, DOUBT, 60)
    table.store.apply(Repeats(max_entries=2))
    assert len(table.store) == 2


async def test_what_is_over_makes_room_by_itself() -> None:
    table = Table()
    for number in range(10):
        table.store.put(LONDON, b"%d" % number, DOUBT, 5)
    await table.clock.advance(11)
    table.store.put(LONDON, b"new", DOUBT, 5)
    assert len(table.store) == 1
    assert table.evicted == {}


# One contract for both places


@asynccontextmanager
async def in_memory(_: Path) -> AsyncIterator[RepeatStore]:
    yield LocalRepeats(Repeats(), clock=SystemClock(), on_evicted=lambda _: None)


@asynccontextmanager
async def in_redis(folder: Path) -> AsyncIterator[RepeatStore]:
    async with redis_server(folder) as server, shared(server) as store:
        yield store


@asynccontextmanager
async def shared(server: RedisServer) -> AsyncIterator[SharedRepeats]:
    async with connected(server) as (connection, _, _):
        clock = SystemClock()
        local = LocalRepeats(Repeats(), clock=clock, on_evicted=lambda _: None)
        yield SharedRepeats(local, connection, clock=clock)


BOTH = pytest.mark.parametrize(
    "place",
    [in_memory, pytest.param(in_redis, marks=pytest.mark.needs("redis-server"))],
    ids=["memory", "redis"],
)
Place = Callable[[Path], AbstractAsyncContextManager[RepeatStore]]


@BOTH
async def test_what_is_kept_is_found(place: Place, tmp_path: Path) -> None:
    async with place(tmp_path) as store:
        for record in (DOUBT, answer(), replace(answer(), is_delivered=True)):
            store.put(LONDON, b"name", record, 60)
            assert await store.find(b"name") == record
        assert await store.find(b"other") is None


@BOTH
async def test_what_is_dropped_is_gone(place: Place, tmp_path: Path) -> None:
    async with place(tmp_path) as store:
        store.put(LONDON, b"name", DOUBT, 60)
        store.drop(b"name")
        store.drop(b"name")
        assert await store.find(b"name") is None


@BOTH
async def test_what_is_kept_ends(place: Place, tmp_path: Path) -> None:
    async with place(tmp_path) as store:
        store.put(LONDON, b"name", DOUBT, 0.1)

        async def is_gone() -> bool:
            return await store.find(b"name") is None

        await until(is_gone)


@BOTH
async def test_a_claim_of_ones_own_is_no_record(place: Place, tmp_path: Path) -> None:
    async with place(tmp_path) as store:
        for _ in range(2):
            assert await store.find(b"name", claimed()) is None


def claimed() -> Record:
    until_then = SystemClock().wall() + 10
    return replace(DOUBT, state=UnderWay(is_sent=False), sent_at=0.0, until=until_then)


# Two replicas


@pytest.mark.needs("redis-server")
async def test_what_one_replica_keeps_the_other_finds(tmp_path: Path) -> None:
    odd = KeptAnswer(202, "", (("A", "\udcff"),), bytes(range(256)))
    async with redis_server(tmp_path) as server, shared(server) as here, shared(server) as there:
        for state in (InDoubt(), odd, UnderWay(is_sent=True)):
            record = replace(DOUBT, state=state)
            here.put(LONDON, b"name", record, 60)
            await here.find(b"another")  # commands are carried out in order
            assert await there.find(b"name") == record
        here.drop(b"name")
        await here.find(b"another")
        assert await there.find(b"name") is None


@pytest.mark.needs("redis-server")
async def test_of_two_replicas_that_look_up_a_key_one_claims_it(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server, shared(server) as here, shared(server) as there:
        for number in range(20):
            name = b"%d" % number
            found = await asyncio.gather(here.find(name, claimed()), there.find(name, claimed()))
            assert sorted(one is None for one in found) == [False, True]


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("trouble", ["stop", "flush"])
async def test_a_replica_knows_what_it_sent_whatever_becomes_of_the_store(
    trouble: str, tmp_path: Path
) -> None:
    async with redis_server(tmp_path) as server, shared(server) as store:
        store.put(LONDON, b"before", DOUBT, 60)
        await store.find(b"another")
        await getattr(server, trouble)()
        store.put(LONDON, b"after", answer(), 60)
        assert await store.find(b"before") == DOUBT
        assert await store.find(b"after") == answer()
        assert await store.find(b"another") is None


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"{}", b'{"sameness": 1}', b"\xff"])
async def test_what_no_replica_wrote_is_no_record(value: bytes, tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server, shared(server) as store:
        await server.client.set(f"export-proxy:2:repeat:{b'name'.hex()}", value)
        assert await store.find(b"name") is None
