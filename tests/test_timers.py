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
    clock = SystemClock()
    calls: list[str] = []

    async def main() -> None:
        soon = clock.monotonic() + 0.002
        clock.call_at(soon + 0.002, lambda: calls.append("last"))
        clock.call_at(soon, lambda: calls.append("first"))
        clock.call_at(soon, lambda: calls.append("second"))
        await clock.sleep_until(soon + 0.002)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert calls == ["first", "second", "last"]


@both_loops
def test_a_callback_that_fails_is_told_and_keeps_no_other_from_being_called(loop: Loop) -> None:
    clock = SystemClock()
    failures: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )
        soon = clock.monotonic() + 0.002
        clock.call_at(soon, lambda: 1 / 0)
        await clock.sleep_until(soon)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


@both_loops
def test_a_timer_may_cancel_another_one_of_the_same_moment(loop: Loop) -> None:
    clock = SystemClock()
    calls: list[str] = []

    async def main() -> None:
        soon = clock.monotonic() + 0.002
        clock.call_at(soon, lambda: second.cancel())  # noqa: PLW0108 -- bound later
        second = clock.call_at(soon, lambda: calls.append("cancelled"))
        await clock.sleep_until(soon + 0.001)

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
