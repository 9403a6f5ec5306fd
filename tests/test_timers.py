"""Timers of the kernel: order, cancelling, failures, and what is left behind."""

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from proxy.clock import SystemClock
from proxy.timers import Timers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs timerfd_create(2)")
Loop = Callable[[], asyncio.AbstractEventLoop]
both_loops = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@both_loops
def test_timers_fire_in_the_order_of_their_moments_and_within_one_in_that_of_asking(
    loop: Loop,
) -> None:
    calls: list[str] = []

    async def main() -> None:
        timers, soon = Timers(asyncio.get_running_loop()), SystemClock.monotonic() + 0.002
        all_called = asyncio.Event()
        timers.call_at(soon + 0.002, lambda: calls.append("last"))
        timers.call_at(soon, lambda: calls.append("first"))
        timers.call_at(soon, lambda: calls.append("second"))
        timers.call_at(soon + 0.002, all_called.set)
        await all_called.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert calls == ["first", "second", "last"]


@both_loops
def test_a_callback_that_fails_is_told_and_keeps_no_other_from_being_called(loop: Loop) -> None:
    failures: list[object] = []

    async def main() -> None:
        timers, called = Timers(asyncio.get_running_loop()), asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )
        soon = SystemClock.monotonic() + 0.002
        timers.call_at(soon, lambda: 1 / 0)
        timers.call_at(soon, called.set)
        await called.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


@both_loops
def test_a_timer_may_cancel_another_one_of_the_same_moment(loop: Loop) -> None:
    calls: list[str] = []

    async def main() -> None:
        timers, called = Timers(asyncio.get_running_loop()), asyncio.Event()
        soon = SystemClock.monotonic() + 0.002
        timers.call_at(soon, lambda: second.cancel())  # noqa: PLW0108 -- bound later
        second = timers.call_at(soon, lambda: calls.append("cancelled"))
        timers.call_at(soon, called.set)
        await called.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert calls == []


async def test_cancelled_timers_are_let_go_long_before_their_moment() -> None:
    timers = Timers(asyncio.get_running_loop())
    kept = [timers.call_at(1e9 + number, print) for number in range(10)]
    before = sum(isinstance(one, type(kept[0])) for one in gc.get_objects())
    for number in range(10_000):
        timers.call_at(1e9 - number, print).cancel()
    after = sum(isinstance(one, type(kept[0])) for one in gc.get_objects())
    assert after - before < 200
    timers.loop.remove_reader(timers.descriptor)


@both_loops
def test_no_descriptor_outlives_the_loop(loop: Loop) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def main(clock: SystemClock) -> None:
        await clock.sleep_until(clock.monotonic())

    clock = SystemClock()
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main(clock))
    before = descriptors()
    for _ in range(20):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(main(clock))
    gc.collect()
    assert descriptors() <= before
