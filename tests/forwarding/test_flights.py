"""Flights that callers leave and join, on the test's clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.forwarding.test_repeats_properties import Asked, World
from tests.forwarding.test_sending import connection

READING_ON = 60.0  # upstream.response_timeout


@asynccontextmanager
async def flight_without_callers(key: str) -> AsyncIterator[tuple[World, Asked]]:
    """A request that was sent, and whose caller left."""
    async with connection() as transport, asyncio.TaskGroup() as tasks:
        world = World(tasks, transport)
        asked = Asked(0, "anna", b"1", key)
        world.request(asked, b"1")
        await world.clock.advance(0.001)
        world.sends[0].go.set()
        await world.clock.advance(0.001)
        world.callers[0].cancel()
        await world.clock.advance(0.001)
        yield world, asked
        await world.finish()


@pytest.mark.parametrize("key", ["", "k"])
async def test_answer_is_read_for_a_joined_caller_however_long_ago_the_first_one_left(
    key: str,
) -> None:
    async with flight_without_callers(key) as (world, asked):
        await world.clock.advance(READING_ON / 2)
        world.request(asked, b"1")
        await world.clock.advance(READING_ON)
        world.end(world.sends[0], "answered")
        await world.clock.advance(0.001)
        joined = world.callers[1]
        assert joined.done()
        assert not joined.cancelled()
        assert world.sends[0].delivered_at is not None
        assert len(world.sends) == 1


async def test_answer_is_given_up_after_its_time_when_the_joined_caller_leaves_too() -> None:
    async with flight_without_callers("k") as (world, asked):
        await world.clock.advance(READING_ON / 2)
        world.request(asked, b"1")
        await world.clock.advance(READING_ON)
        world.callers[1].cancel()
        await world.clock.advance(READING_ON - 1)
        reads_on = world.replicas[0].under_way
        await world.clock.advance(2)
        assert (reads_on, world.replicas[0].under_way) == (1, 0)


async def test_caller_that_joins_as_the_flight_is_given_up_learns_that_it_is_in_doubt() -> None:
    async with flight_without_callers("") as (world, asked):
        world.request(asked, b"1")
        await world.clock.advance(0.001)
        (flight,) = [one for one in asyncio.all_tasks() if "_fly" in repr(one.get_coro())]
        flight.cancel()
        await world.clock.advance(0.001)
        joined = world.callers[1]
        assert joined.done()
        assert not joined.cancelled()
        assert world.problems == ["in-doubt"]
        assert len(world.sends) == 1


@pytest.mark.parametrize(("is_sent", "told"), [(False, "draining"), (True, "in-doubt")])
async def test_drain_ends_the_wait_for_another_replica(*, is_sent: bool, told: str) -> None:
    async with connection() as transport, asyncio.TaskGroup() as tasks:
        world = World(tasks, transport)
        for replica in (0, 1):
            world.request(Asked(replica, "anna", b"1", "k"), b"1")
            await world.clock.advance(0.001)
            if is_sent:
                world.sends[0].go.set()
            await world.clock.advance(0.001)
        waits = not world.callers[1].done()
        world.drain.begin()
        await world.clock.advance(0.5)
        assert waits
        assert world.problems == [told]
        world.end(world.sends[0], "answered")
        await world.finish()
