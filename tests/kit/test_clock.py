"""The fake clock passes time as the real one would."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from tests.kit.clock import FakeClock


async def test_what_was_free_to_go_goes_before_time_moves() -> None:
    clock = FakeClock()
    stamps: list[float] = []

    async def stamp() -> None:
        stamps.append(clock.monotonic())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stamp())
        await clock.advance(10)
    assert stamps == [0]


async def test_a_loop_that_paces_once_a_second_wakes_every_second() -> None:
    clock = FakeClock()
    stamps: list[float] = []

    async def pace() -> None:
        for _ in range(4):
            await clock.sleep_until(clock.monotonic() + 1)
            stamps.append(clock.monotonic())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pace())
        await clock.advance(2.5)
        assert stamps == [1, 2]
        assert clock.monotonic() == 2.5
        await clock.advance(10)
    assert stamps == [1, 2, 3, 4]


async def test_one_deadline_wakes_its_sleepers_one_by_one_in_order() -> None:
    clock = FakeClock()
    seen: list[str] = []

    async def sleeper(name: str) -> None:
        await clock.sleep_until(1)
        seen.append(f"{name} woke")
        await clock.sleep_until(1)  # already past
        seen.append(f"{name} done")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleeper("a"))
        tasks.create_task(sleeper("b"))
        await clock.advance(1)
    assert seen == ["a woke", "b woke", "a done", "b done"]


async def test_a_chain_of_tasks_is_over_before_the_next_deadline() -> None:
    clock = FakeClock()
    seen: list[str | float] = []

    async def first() -> None:
        await clock.sleep_until(1)
        for _ in range(50):
            await asyncio.sleep(0)  # noqa: TID251 - fifty steps without time
        seen.append(clock.monotonic())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(first())
        await clock.advance(0)
        clock.call_at(1, lambda: seen.append("next"))
        await clock.advance(1)
    assert seen == [1, "next"]


async def test_a_sleeper_cancelled_early_is_gone() -> None:
    clock = FakeClock()
    async with asyncio.TaskGroup() as tasks:
        sleeper = tasks.create_task(clock.sleep_until(5))
        await clock.advance(1)
        assert clock.pending == 1
        sleeper.cancel()
        await clock.advance(0)
        assert clock.pending == 0
        await clock.advance(10)
    assert sleeper.cancelled()
    assert clock.monotonic() == 11


async def test_a_callback_may_ask_for_another() -> None:
    clock = FakeClock()
    stamps: list[float] = []

    def again() -> None:
        stamps.append(clock.monotonic())
        if len(stamps) < 3:
            clock.call_at(clock.monotonic() + 0.5, again)

    clock.call_at(0.5, again)
    await clock.advance(1.0)
    assert stamps == [0.5, 1.0]
    await clock.advance(0.5)
    assert stamps == [0.5, 1.0, 1.5]


async def test_a_moment_in_the_past_is_due_without_an_advance() -> None:
    clock = FakeClock(start=100)
    await clock.sleep_until(100)
    cancelled: list[str] = []
    clock.call_at(99, lambda: cancelled.append("called")).cancel()
    await clock.sleep_until(99)
    assert cancelled == []


async def test_eight_tenths_make_0_8() -> None:
    clock = FakeClock()
    seen: list[str] = []
    clock.call_at(0.8, lambda: seen.append("called"))
    for _ in range(8):
        await clock.advance(0.1)
    assert seen == ["called"]
    assert clock.monotonic() >= 0.8


async def test_the_wall_clock_moves_along_and_jumps_alone() -> None:
    clock = FakeClock(wall=1000)
    await clock.advance(5)
    assert clock.wall() == 1005
    clock.jump_wall(-3600)
    assert (clock.monotonic(), clock.wall()) == (5, -2595)


async def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="forward"):
        await FakeClock().advance(-1)


async def test_a_task_that_spins_is_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kit.clock.MANY_YIELDS", 100)
    clock = FakeClock()
    is_spinning = True

    async def spin() -> None:
        while is_spinning:  # noqa: ASYNC110 - the fault
            await asyncio.sleep(0)  # noqa: TID251 - likewise

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(spin())
        with pytest.raises(RuntimeError, match="spins"):
            await clock.advance(1)
        is_spinning = False


@pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_both_loops_will_do(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test_a_loop_that_paces_once_a_second_wakes_every_second())
