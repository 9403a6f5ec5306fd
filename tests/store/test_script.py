"""The script on a real Redis, whatever befalls replicas, keys and clocks; and what it says."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio.client import PubSub

from proxy.pacing.leases import HoldLeft
from proxy.store.script import (
    HoldMessage,
    LeaseMessage,
    LostMessage,
    Message,
    OpenMessage,
    OverMessage,
    Stamp,
    parse_message,
)
from tests.kit.process import until
from tests.kit.redis import RedisServer, redis_server
from tests.kit.replicas import pause

SCRIPT = files("proxy.store").joinpath("lease.lua").read_text()
KEY = "export-proxy:2:{account}"
MS = 1_000  # microseconds
SECOND = 1_000_000
END = "that was all"
INTERVAL = 5 * SECOND


@dataclass(frozen=True, slots=True)
class Status:
    mine: bool
    wait: int  # microseconds
    wanting: int
    ahead: int
    hold: int
    named: int = 0
    route_hold: int = 0
    route_named: int = 0


class Store:
    """A Redis with some replicas that listen to it."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self._script = server.client.register_script(SCRIPT)
        self._ears: dict[str, PubSub] = {}

    async def listen(self, *names: str) -> None:
        for name in names:
            ear = self._ears[name] = self.server.client.pubsub()
            await ear.subscribe("p:" + name)
            await ear.get_message(timeout=None)

    async def leave_without_a_word(self, name: str) -> None:
        await cast("Any", self._ears.pop(name)).aclose()

        async def is_gone() -> bool:
            ((_, listeners),) = await self.server.client.pubsub_numsub("p:" + name)
            return bool(listeners == 0)

        await until(is_gone)

    async def received(self, name: str) -> list[str]:
        """What was said there, without the stamps."""
        await self.server.client.publish("p:" + name, END)
        words: list[str] = []
        while END not in words:
            message = await self._ears[name].get_message(timeout=None)
            words.append(message["data"].decode())
        return words[:-1]

    async def say(  # noqa: PLR0913 -- the script's arguments
        self,
        op: str,
        who: str,
        *,
        span: int = 0,
        named: int = 0,
        again: str = "",
        lease: int = 2 * SECOND,
        route: str = "exports",
        ttl: int = 60_000,
    ) -> Status:
        arguments: list[Any] = [op, route, who, span, INTERVAL, lease, again, "p:", ttl, named]
        answer: Sequence[Any] = await self._script(keys=[KEY], args=arguments)
        mine, wait, wanting, ahead, hold, _, _, *holds = map(int, answer)
        return Status(bool(mine), wait, wanting, ahead, hold, *holds)

    async def set(self, fields: dict[str, str]) -> None:
        await cast("Any", self.server.client).hset(KEY, mapping=fields)

    async def get(self, field: str) -> str:
        return str((await cast("Any", self.server.client.hget(KEY, field))).decode())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with redis_server(tmp_path) as server:
        store = Store(server)
        await store.listen("a", "b", "c", "all")
        yield store
        for name in ("a", "b", "c", "all"):
            if name in store._ears:  # noqa: SLF001 -- its own
                await store.leave_without_a_word(name)


async def test_leases_go_round_in_the_order_of_asking(store: Store) -> None:
    assert await store.say("ask", "a") == Status(mine=True, wait=0, wanting=1, ahead=0, hold=0)
    assert (await store.say("ask", "b")).ahead == 1
    third = await store.say("ask", "c")
    assert (third.mine, third.wanting, third.ahead) == (False, 3, 2)
    for sender, next_one in ("ab", "bc", "ca", "ab"):
        status = await store.say("sent", sender, span=INTERVAL, again="wait")
        assert (status.mine, status.ahead) == (False, 2)
        assert await store.get("holder:exports") == next_one
        (word,) = [w for w in await store.received(next_one) if w.startswith("lease ")]
        kind, key, route, _, _, wait = word.split(" ")
        assert (kind, key, route) == ("lease", KEY, "exports")
        assert INTERVAL - SECOND <= int(wait) <= INTERVAL


async def test_lone_sender_keeps_the_lease(store: Store) -> None:
    await store.say("ask", "a")
    status = await store.say("sent", "a", span=INTERVAL, again="wait")
    assert (status.mine, status.wanting) == (True, 1)
    assert INTERVAL - SECOND <= status.wait <= INTERVAL


async def test_replica_that_asks_again_keeps_the_place(store: Store) -> None:
    for who in "abc":
        await store.say("ask", who)
    assert (await store.say("ask", "b")).ahead == 1
    assert (await store.say("ask", "a")).mine


async def test_lease_is_kept_by_the_replica_that_sends_alone_until_another_wants_it(
    store: Store,
) -> None:
    await store.say("sent", "a", again="keep")
    assert await store.get("holder:exports") == ""  # the first send: nobody knows yet
    assert (await store.say("sent", "a", again="keep")).mine
    assert not (await store.say("ask", "b")).mine
    (word,) = [w for w in await store.received("a") if not w.startswith("lost ")]
    assert word.startswith(f"wanted {KEY} exports ")
    await store.say("leave", "a")
    assert await store.get("holder:exports") == "b"


@pytest.mark.parametrize("waiting", [True, False])
async def test_lease_is_not_kept_where_others_send_or_wait(store: Store, *, waiting: bool) -> None:
    await store.say("sent", "a", again="keep")
    await store.say("ask" if waiting else "sent", "b")
    if waiting:
        await store.say("ask", "c")
        await store.say("leave", "b")
    assert not (await store.say("sent", "a", again="keep")).mine


async def test_queue_of_names_is_bounded(store: Store) -> None:
    """Many replicas that ask, or a field that another program wrote, cost no more than a few."""
    await store.say("ask", "a", lease=600 * SECOND)
    for number in range(200):
        await store.say("ask", f"replica-{number}")
    assert (await store.get("queue:exports")).count(",") == 128
    await store.set({"queue:exports": "x" * 100_000 + ",b," + "y," * 100_000})
    assert (await store.say("ask", "c")).wanting <= 3


async def test_unused_lease_goes_on_at_once(store: Store) -> None:
    for who in "abc":
        await store.say("ask", who)
    await store.say("leave", "b")
    await store.say("leave", "a")
    assert (await store.say("ask", "c")).mine
    assert (await store.say("leave", "c")).wanting == 0


async def test_routes_have_lines_of_their_own_and_share_the_hold(store: Store) -> None:
    assert (await store.say("ask", "a")).mine
    assert (await store.say("ask", "b", route="jobs")).mine
    await store.say("hold", "a", route="", span=5 * SECOND)
    for route in ("exports", "jobs"):
        status = await store.say("ask", "c", route=route)
        assert 4 * SECOND < status.wait <= 5 * SECOND
        assert 4 * SECOND < status.hold <= 5 * SECOND


async def test_hold_is_told_to_all_and_never_shortened(store: Store) -> None:
    await store.say("hold", "a", route="", span=5 * SECOND)
    status = await store.say("hold", "b", route="", span=SECOND)
    assert 4 * SECOND < status.hold <= 5 * SECOND
    _, first, second = await store.received("all")
    assert first.split(" ")[:3] == ["hold", "a", KEY]
    assert 4 * SECOND < int(second.split(" ")[4]) <= 5 * SECOND
    assert 4 * SECOND < (await store.say("look", "c")).hold <= 5 * SECOND


async def test_lease_under_a_hold_lasts_beyond_it(store: Store) -> None:
    """A lease begins when it can be used."""
    await store.say("hold", "b", route="", span=2 * SECOND)
    await store.say("ask", "a", lease=200 * MS)
    await store.say("ask", "b", lease=200 * MS)
    await pause(0.4)
    assert not (await store.say("ask", "b", lease=200 * MS)).mine
    await pause(2.0)
    assert (await store.say("ask", "b", lease=200 * MS)).mine


async def test_lease_of_a_dead_replica_runs_out_and_its_last_send_is_allowed_for(
    store: Store,
) -> None:
    await store.say("ask", "a", lease=100 * MS)
    await store.say("ask", "b", lease=100 * MS)
    await pause(0.15)
    status = await store.say("ask", "b", lease=100 * MS)
    assert status.mine
    assert INTERVAL - SECOND <= status.wait <= INTERVAL  # it may have sent at the last moment
    *_, word = await store.received("a")
    assert word.startswith(f"over {KEY} exports ")


async def test_lease_that_is_asked_for_again_does_not_run_out(store: Store) -> None:
    await store.say("ask", "a")
    await store.say("ask", "b")
    for _ in range(3):
        await pause(0.8)
        assert (await store.say("ask", "a")).mine
    assert not (await store.say("ask", "b")).mine


async def test_replica_that_no_longer_listens_is_passed_over(store: Store) -> None:
    for who in "abc":
        await store.say("ask", who)
    await store.leave_without_a_word("b")
    await store.say("sent", "a", span=INTERVAL)
    assert await store.get("holder:exports") == "c"


async def test_send_out_of_turn_moves_the_holder_s_moment(store: Store) -> None:
    await store.say("ask", "a")
    await store.say("sent", "b", span=INTERVAL)
    (word,) = await store.received("a")
    assert word.startswith(f"lease {KEY} exports ")
    assert INTERVAL - SECOND <= int(word.split(" ")[5]) <= INTERVAL
    assert (await store.say("ask", "a")).wait > 0


async def test_state_that_is_found_missing_is_told_to_all_once(store: Store) -> None:
    await store.say("ask", "a")
    await store.say("ask", "b")
    await store.server.flush()
    await store.say("ask", "b")
    await store.say("ask", "a")
    lost = [word.split(" ") for word in await store.received("all")]
    assert [word[:3] for word in lost] == [["lost", "a", KEY], ["lost", "b", KEY]]


@pytest.mark.parametrize("op", ["ask", "sent", "leave", "hold", "look"])
async def test_state_that_is_missing_is_noticed_whatever_is_said(store: Store, op: str) -> None:
    await store.say(op, "a", span=SECOND)
    assert (await store.received("all"))[0].split(" ")[:3] == ["lost", "a", KEY]


@pytest.mark.parametrize("jump", [3600, -3600])
async def test_clock_that_is_set_stops_no_queue(store: Store, jump: int) -> None:
    """At the worst a queue waits for one span more than it was to."""
    await store.say("hold", "a", route="", span=200 * MS)
    await store.say("ask", "a")
    await store.say("sent", "a", span=500 * MS, again="wait")
    await store.say("ask", "b")
    await store.server.jump_clock(jump)
    status = await store.say("ask", "a")
    assert status.wait <= 500 * MS
    await pause(0.25)
    assert (await store.say("look", "a")).hold == 0
    await pause(0.3)
    assert (await store.say("ask", "a")).wait == 0


@pytest.mark.parametrize("make", ["set", "list", "string", "garbage"])
async def test_key_that_somebody_else_wrote_stops_no_queue(store: Store, make: str) -> None:
    client = store.server.client
    match make:
        case "set":
            await cast("Any", client.sadd(KEY, "x"))
        case "list":
            await cast("Any", client.rpush(KEY, "x"))
        case "string":
            await client.set(KEY, "x")
        case _:
            await store.set(
                {
                    "due:exports": "nan",
                    "due:exports_span": "inf",
                    "until:exports": "-1",
                    "hold": "9" * 400,
                    "hold_span": "1e300",
                    "born": "x",
                    "count": "x",
                    "queue:exports": ",,,",
                }
            )
    status = await store.say("ask", "a")
    assert (status.mine, status.wait, status.hold) == (True, 0, 0)


async def test_state_outlives_what_it_says_and_not_for_long(store: Store) -> None:
    await store.say("ask", "a", ttl=10_000)
    assert 10_000 < await store.server.client.pttl(KEY) <= 12_000  # a lease of 2 s
    await store.say("hold", "a", route="", span=60 * SECOND, ttl=10_000)
    assert 60_000 < await store.server.client.pttl(KEY) <= 70_000
    await store.say("sent", "a", span=100 * SECOND, ttl=10_000)
    assert 100_000 < await store.server.client.pttl(KEY) <= 110_000


async def test_state_outlives_what_another_route_says(store: Store) -> None:
    await store.say("sent", "a", span=100 * SECOND, ttl=10_000)
    await store.say("ask", "a", route="jobs", ttl=10_000)
    assert 100_000 < await store.server.client.pttl(KEY) <= 110_000


async def test_hold_of_a_route_delays_that_route_only(store: Store) -> None:
    await store.say("hold", "a", span=5 * SECOND, named=90 * SECOND)
    held = await store.say("ask", "b")
    assert held.hold == held.named == 0
    assert 4 * SECOND < held.route_hold <= 5 * SECOND
    assert 80 * SECOND < held.route_named <= 90 * SECOND
    assert 4 * SECOND < held.wait <= 5 * SECOND
    other = await store.say("ask", "b", route="jobs")
    assert (other.wait, other.route_hold, other.route_named) == (0, 0, 0)


async def test_named_wait_outlives_the_hold_until_it_is_seen_to_be_over(store: Store) -> None:
    await store.say("hold", "a", route="", span=0, named=90 * SECOND)
    assert (await store.say("look", "b")).named > 80 * SECOND
    await store.say("open", "a", route="")
    status = await store.say("look", "b")
    assert (status.hold, status.named) == (0, 0)


async def test_end_of_a_named_wait_does_not_end_a_hold(store: Store) -> None:
    await store.say("hold", "a", route="", span=5 * SECOND, named=90 * SECOND)
    await store.say("open", "b", route="")
    status = await store.say("look", "c")
    assert 4 * SECOND < status.hold <= 5 * SECOND
    assert status.named == 0


async def test_holds_and_their_ends_are_told_to_all_with_their_route(store: Store) -> None:
    await store.say("hold", "a", span=5 * SECOND, named=9 * SECOND)
    await store.say("open", "a", route="")
    words = [word for word in await store.received("all") if not word.startswith("lost ")]
    assert words[0].startswith(f"hold a {KEY} exports ")
    assert words[1] == f"open a {KEY} "


async def test_hold_of_days_is_one_of_a_day(store: Store) -> None:
    day = 86_400 * SECOND
    await store.say("hold", "a", route="", span=3 * day)
    assert day - 5 * SECOND < (await store.say("look", "b")).hold <= day
    assert day - 5 * SECOND < (await store.say("hold", "b", route="", span=SECOND)).hold <= day


async def test_one_key_per_account_that_a_cluster_can_place(store: Store) -> None:
    for who in "abc":
        await store.say("ask", who)
    await store.say("hold", "a", route="", span=SECOND)
    assert list(await store.server.everything()) == [KEY]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lease k r 7 8 1500000", LeaseMessage(("k", "r"), Stamp(7, 8), 1.5)),
        ("over k r 7 8", OverMessage(("k", "r"), Stamp(7, 8))),
        ("hold another k  2000000 3000000", HoldMessage(("k", ""), HoldLeft(2.0, 3.0))),
        ("hold another k r 1000000 1000000", HoldMessage(("k", "r"), HoldLeft(1.0, 1.0))),
        ("open another k r", OpenMessage(("k", "r"))),
        ("lost another k 7", LostMessage("k", 7)),
        ("hold me k 2000000", None),
        ("lost me k 7", None),
        ("lease k r 7 8", None),
        ("lease k r 7 8 -1", None),
        ("lease k r 7 8 " + "9" * 20, None),
        ("hold another k nan", None),
        ("", None),
        ("that was all", None),
    ],
)
def test_message_of_another_replica_is_understood_and_anything_else_is_none(
    text: str, message: Message | None
) -> None:
    assert parse_message(text, me="me") == message


@pytest.mark.parametrize(
    ("stamp", "other", "is_after"),
    [
        (Stamp(1, 5), None, True),
        (Stamp(1, 5), Stamp(1, 4), True),
        (Stamp(1, 5), Stamp(1, 5), False),
        (Stamp(1, 5), Stamp(1, 6), False),
        (Stamp(2, 1), Stamp(1, 6), True),
    ],
)
def test_later_operation_and_another_state_are_newer(
    stamp: Stamp, other: Stamp | None, *, is_after: bool
) -> None:
    assert stamp.is_after(other) is is_after
