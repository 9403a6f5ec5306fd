"""Orders of operators on a real Redis: every replica obeys, whatever happens to the store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path

import pytest
from redis.asyncio import Redis

from proxy.rules.orders import NO_ORDERS, Orders
from proxy.store.client import PREFIX
from tests.kit.process import until
from tests.kit.redis import RedisServer, redis_server
from tests.kit.replicas import CLOCK, Replica, all_shared, early, pause, replicas_of, settings_of

pytestmark = pytest.mark.needs("redis-server")

INTERVAL = 0.05
KEY = PREFIX + "orders"


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[RedisServer, list[Replica]]]:
    async with redis_server(folder) as server:
        settings = settings_of(server.url, interval=INTERVAL, replicas=2)
        async with replicas_of(settings, 2) as replicas:
            yield server, replicas


def obeyed(replica: Replica) -> Orders:
    control = replica.accounts.configured("london").allowance.control
    return control.at(CLOCK.monotonic()).orders


async def all_paused(replicas: Sequence[Replica], *, is_so: bool = True) -> None:
    async def question() -> bool:
        return all((obeyed(one).pause is not None) is is_so for one in replicas)

    await until(question)


async def order_pause(replica: Replica, seconds: float = inf) -> bool:
    return await replica.accounts.operators.pause(replica.accounts.configured("london"), seconds)


async def order_resume(replica: Replica) -> bool:
    return await replica.accounts.operators.resume(replica.accounts.configured("london"))


async def order_interval(replica: Replica, interval: float, seconds: float) -> bool:
    account = replica.accounts.configured("london")
    return await replica.accounts.operators.slow_down(account, interval, seconds)


async def test_all_replicas_obey_a_pause_and_its_end(tmp_path: Path) -> None:
    """A hundred wait at both: nothing is sent, then everything, at the pace, in order."""
    async with two(tmp_path) as (_, replicas):
        callers = [
            replicas[number % 2].caller(replicas[number % 2].queue(), str(number))
            for number in range(100)
        ]
        sends = replicas[0].sends

        async def some_are_sent() -> bool:
            return len(sends) >= 5

        await until(some_are_sent)
        assert await order_pause(replicas[0])
        await all_paused(replicas)
        sent = len(sends)
        assert sent < 100
        await pause(10 * INTERVAL)
        assert len(sends) == sent
        assert await order_resume(replicas[1])
        await all_paused(replicas, is_so=False)
        assert await asyncio.gather(*callers) == [None] * 100
        assert early((one.at for one in sends), INTERVAL) == 0
        for number in (0, 1):
            served = [int(one.caller) for one in sends if one.replica == number]
            assert served == list(range(number, 100, 2))


async def test_all_replicas_keep_the_ordered_interval(tmp_path: Path) -> None:
    longer = 6 * INTERVAL
    async with two(tmp_path) as (_, replicas):
        callers = [one.caller(one.queue()) for one in replicas for _ in range(4)]
        sends = replicas[0].sends

        async def some_are_sent() -> bool:
            return len(sends) >= 2

        await until(some_are_sent)
        assert await order_interval(replicas[1], longer, 600.0)

        async def both_know() -> bool:
            return all(obeyed(one).slowdown is not None for one in replicas)

        await until(both_know)
        known = CLOCK.monotonic()
        await asyncio.gather(*callers)
        after = [one.at for one in sends if one.at > known]
        before = [one.at for one in sends if one.at <= known]
        assert len(after) + len(before) == 8
        assert early([*before[-1:], *after], longer) == 0


async def test_a_replica_that_starts_later_obeys_what_was_ordered(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, replicas):
        await order_pause(replicas[0], 3600.0)
        await order_interval(replicas[0], 5.0, 1800.0)
        settings = settings_of(server.url, interval=INTERVAL, replicas=2)
        async with replicas_of(settings, 1) as (late,):
            await all_paused([late])
            ours, theirs = obeyed(replicas[0]), obeyed(late)
            assert ours.pause is not None
            assert theirs.pause is not None
            assert theirs.slowdown is not None
            assert theirs.slowdown.interval == 5.0
            assert abs(theirs.pause.since - ours.pause.since) < 0.01
            assert abs(theirs.pause.until - ours.pause.until) < 60


async def test_an_order_with_an_end_leaves_the_store_at_its_end(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, replicas):
        await order_pause(replicas[0], 0.2)
        await all_paused(replicas, is_so=False)
        await pause(0.25)
        await order_interval(replicas[1], 5.0, 60.0)  # any call sweeps
        async with Redis.from_url(server.url) as redis:
            fields = [str(field, "ascii").partition(" ")[0] for field in await redis.hkeys(KEY)]  # type: ignore[arg-type]  # bytes, whatever it says
            assert sorted(fields) == ["born", "slowdown"]


async def test_while_the_store_is_down_one_replica_obeys_and_tells_the_others_later(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as (server, replicas):
        await server.kill()
        assert not await order_pause(replicas[0])
        assert obeyed(replicas[0]).pause is not None
        assert obeyed(replicas[1]) == NO_ORDERS
        await server.start()
        await all_shared(replicas)
        await all_paused(replicas)


async def test_an_account_resumed_while_the_store_is_down_stays_resumed(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, replicas):
        await order_pause(replicas[0])
        await all_paused(replicas)
        await server.kill()
        assert not await order_resume(replicas[0])
        assert obeyed(replicas[0]) == NO_ORDERS
        await server.start()
        await all_shared(replicas)
        await all_paused(replicas, is_so=False)


async def test_a_store_that_lost_everything_is_told_again(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, replicas):
        await order_pause(replicas[0])
        await order_interval(replicas[0], 5.0, 3600.0)
        await all_paused(replicas)
        await server.flush()

        async def is_known() -> bool:
            async with Redis.from_url(server.url) as redis:
                return await redis.hlen(KEY) == 3

        await until(is_known)
        assert all(obeyed(one).pause is not None for one in replicas)
        await order_resume(replicas[1])
        await all_paused(replicas, is_so=False)


@pytest.mark.parametrize(
    "planted",
    [
        {b"born": b"x", b"pause " + b"k" * 9: b"not ours"},
        {b"nonsense": b"1 2 3"},
        {b"pause": b"1 0 0", b"slowdown k": b"1 0 5"},
        {b"\xff\xfe": b"9999999999999999999999 0 0"},
    ],
    ids=["value", "field", "name", "bytes"],
)
async def test_what_no_replica_wrote_changes_nothing(
    tmp_path: Path, planted: dict[str | bytes, bytes]
) -> None:
    async with two(tmp_path) as (server, replicas):
        async with Redis.from_url(server.url) as redis:
            for field, value in planted.items():
                await redis.hset(KEY, field, value)
        assert await order_pause(replicas[0])
        await all_paused(replicas)
        assert await order_resume(replicas[0])
        await all_paused(replicas, is_so=False)


async def test_a_key_of_another_type_is_replaced(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, replicas):
        async with Redis.from_url(server.url) as redis:
            await redis.set(KEY, "planted")
        assert await order_pause(replicas[0])
        await all_paused(replicas)


async def test_a_reload_asks_for_the_orders_of_new_accounts(tmp_path: Path) -> None:
    """Removed, the account serves its waiters; back again, it is as paused as elsewhere."""
    async with two(tmp_path) as (server, replicas):
        await order_pause(replicas[0])
        await all_paused(replicas)
        settings = settings_of(server.url, interval=INTERVAL, replicas=2)
        without = settings.model_copy(update={"accounts": settings.accounts[1:]})
        replicas[1].accounts.apply(without)
        replicas[1].accounts.apply(settings)
        await all_paused(replicas)
