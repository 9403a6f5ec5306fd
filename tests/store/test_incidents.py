"""What replicas agree on about incidents, in a real Redis."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.store.incidents import BELIEVED_SECONDS, LOCK_SECONDS, SharedLedger
from tests.kit.clock import FakeClock
from tests.kit.process import until
from tests.kit.redis import RedisServer, redis_server
from tests.kit.replicas import replicas_of, settings_of

pytestmark = pytest.mark.needs("redis-server")


@asynccontextmanager
async def ledgers(
    folder: Path, clock: FakeClock
) -> AsyncIterator[tuple[RedisServer, SharedLedger, SharedLedger]]:
    async with redis_server(folder) as redis:
        settings = settings_of(redis.url, interval=0.01, replicas=2)
        async with replicas_of(settings, 2) as replicas:
            here, there = (SharedLedger(one.store, clock=clock) for one in replicas)
            yield redis, here, there


async def test_one_replica_at_a_time_may_open_an_incident(tmp_path: Path) -> None:
    async with ledgers(tmp_path, FakeClock()) as (_, here, there):
        assert await here.lock("i")
        assert not await there.lock("i")
        assert await there.lock("another")
        await there.unlock("i")  # it is not theirs
        assert not await there.lock("i")
        await here.unlock("i")
        assert await there.lock("i")


async def test_a_replica_that_was_killed_keeps_no_lock(tmp_path: Path) -> None:
    async with ledgers(tmp_path, FakeClock()) as (redis, here, there):
        assert await here.lock("i")
        await redis.jump_clock(LOCK_SECONDS + 1)
        assert await there.lock("i")


async def test_the_last_replica_that_sees_trouble_knows_it_is_the_last(tmp_path: Path) -> None:
    async with ledgers(tmp_path, FakeClock()) as (_, here, there):
        await here.see(["i", "j"])
        await there.see(["i"])
        assert not await here.leave("i")
        assert await here.leave("j")
        assert await there.leave("i")
        assert await there.leave("never seen")


async def test_a_note_is_believed_for_a_minute(tmp_path: Path) -> None:
    clock = FakeClock()
    async with ledgers(tmp_path, clock) as (_, here, there):
        await there.see(["i"])
        await clock.advance(BELIEVED_SECONDS - 1)
        assert not await here.leave("i")
        await clock.advance(2)
        assert await here.leave("i")


async def test_what_was_announced_is_remembered_until_its_end(tmp_path: Path) -> None:
    many = [f"i-{number}" for number in range(1_200)]
    async with ledgers(tmp_path, FakeClock()) as (_, here, there):
        for incident in ("i-1", "i-700"):
            await here.keep(incident)
        assert list(await there.kept(many)) == ["i-1", "i-700"]
        await there.forget("i-1")
        assert list(await here.kept(many)) == ["i-700"]


async def test_while_the_store_is_down_each_replica_acts_alone(tmp_path: Path) -> None:
    async with ledgers(tmp_path, FakeClock()) as (redis, here, there):
        await here.see(["i"])
        assert await here.lock("i")
        await redis.kill()

        async def both_may_open() -> bool:
            return await here.lock("i") and await there.lock("i")

        await until(both_may_open)
        assert await there.leave("i")
        assert list(await there.kept(["i"])) == []
