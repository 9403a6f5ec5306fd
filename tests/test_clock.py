"""The real clocks, under both loops the proxy runs on, with a few timers of milliseconds."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest
import uvloop

from proxy.clock import SystemClock

DELAYS = [0.0, 0.0001, 0.0004, 0.0014, 0.0026, 0.0051, 0.0104]
Loop = Callable[[], asyncio.AbstractEventLoop]
both_loops = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@pytest.fixture(autouse=True, params=["precise timers", "timers of the loop"])
def _kind_of_timer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with the timers of this system, and with those that any system has."""
    if request.param == "timers of the loop":
        monkeypatch.setattr("proxy.clock.is_supported", False)


def keep_the_loop_busy(clock: SystemClock, seconds: float) -> None:
    until = clock.monotonic() + seconds
    while clock.monotonic() < until:
        pass


@both_loops
def test_no_callback_is_early_however_busy_the_loop_was(loop: Loop) -> None:
    clock = SystemClock()
    early: list[float] = []

    async def main() -> None:
        all_called = asyncio.Event()
        left = len(DELAYS)

        def called(when: float) -> None:
            nonlocal left
            early.append(max(0.0, when - clock.monotonic()))
            left -= 1
            if not left:
                all_called.set()

        keep_the_loop_busy(clock, 0.005)
        for delay in DELAYS:
            when = clock.monotonic() + delay
            clock.call_at(when, partial(called, when))
        await all_called.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert early == [0.0] * len(DELAYS)


@both_loops
def test_a_sleeper_wakes_on_time(loop: Loop) -> None:
    clock = SystemClock()

    async def late_by(delay: float) -> float:
        when = clock.monotonic() + delay
        await clock.sleep_until(when)
        return clock.monotonic() - when

    with asyncio.Runner(loop_factory=loop) as runner:
        assert all(0 <= runner.run(late_by(delay)) < 5 for delay in DELAYS)


@both_loops
def test_a_moment_in_the_past_is_due_at_once_and_called_by_the_loop(loop: Loop) -> None:
    clock = SystemClock()

    async def main() -> None:
        called = asyncio.Event()
        clock.call_at(clock.monotonic() - 1, called.set)
        assert not called.is_set()
        await called.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@both_loops
def test_a_cancelled_timer_never_calls_though_its_loop_timer_came_early(loop: Loop) -> None:
    clock = SystemClock()
    calls: list[str] = []

    async def main() -> None:
        keep_the_loop_busy(clock, 0.005)  # uvloop now counts from 5 ms ago
        now = clock.monotonic()
        timer = clock.call_at(now + 0.010, lambda: calls.append("cancelled"))
        clock.call_at(now + 0.008, timer.cancel)
        await clock.sleep_until(now + 0.012)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert calls == []


@both_loops
def test_a_sleeper_cancelled_in_the_turn_its_timer_fires_leaves_quietly(loop: Loop) -> None:
    clock = SystemClock()
    failures: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context)
        )
        is_in_time = False
        while not is_in_time:  # the machine may stand still while the scene is set
            now = clock.monotonic()
            async with asyncio.TaskGroup() as tasks:
                sleeper = tasks.create_task(clock.sleep_until(now + 0.004))
                clock.call_at(now + 0.002, sleeper.cancel)
                await clock.sleep_until(now)  # the sleeper has begun
                is_in_time = clock.monotonic() < now + 0.002
                keep_the_loop_busy(clock, 0.008)
        assert sleeper.cancelled()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert failures == []


def test_the_clocks_tell_seconds_since_nowhere_and_since_1970() -> None:
    clock = SystemClock()
    earlier = clock.monotonic()
    assert clock.monotonic() >= earlier
    assert clock.wall() > 1_700_000_000
