"""The two clocks, and, with the timers, the only place that reads them or waits for them.

Two clocks, because neither can do the other's work. The monotonic clock paces: it never goes back
and nobody sets it, but it counts from an arbitrary moment, so it cannot judge a date. The wall
clock judges dates, in Retry-After fields and in tokens, but may be set forward or back at any
moment: a pace kept by it would stall or burst. No code subtracts a value of one from a value of the
other.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from proxy.timers import Timers, is_supported


class Timer(Protocol):
    def cancel(self) -> None:
        """Prevent the call; after the call this does nothing."""


class Clock(Protocol):
    """A source of both times, and of timers. `sleep_until` is the same for every clock."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump when the clock is set."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call back from the event loop once monotonic() has reached `when`, never earlier.

        If the moment is already past, the loop makes the call at its next pass.
        """
        ...

    async def sleep_until(self, when: float) -> None:
        """Wait until monotonic() has reached `when`; a cancelled wait leaves no timer behind."""
        woken = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():  # cancelled, and the task has not come round to the timer yet
                woken.set_result(None)

        timer = self.call_at(when, wake)
        try:
            await woken
        finally:
            timer.cancel()


class SystemClock(Clock):
    """The real clocks. Two callbacks due at the same moment may come in either order."""

    monotonic = staticmethod(time.monotonic)  # read a dozen times a request: no frame of our own
    wall = staticmethod(time.time)

    def __init__(self) -> None:
        self._timers: Timers | None = None

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        timers, loop = self._timers, asyncio.get_running_loop()
        if when <= time.monotonic():
            return loop.call_soon(callback)
        if not is_supported:
            return _LoopTimer(when, callback)
        if timers is None or timers.loop is not loop:
            timers = self._timers = Timers(loop)
        return timers.call_at(when, callback)


class _LoopTimer:
    """A loop's timer that asks the clock again before it calls, where the precise ones are not.

    Loops fire early: asyncio by the resolution of its clock; uvloop by half a millisecond, to which
    it rounds delays, and by as long as the loop was busy, since it counts from a cached time.
    """

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self._when = when
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._arm()

    def _arm(self) -> None:
        self._handle = self._loop.call_later(self._when - time.monotonic(), self._fire)

    def _fire(self) -> None:
        if time.monotonic() < self._when:
            self._arm()
        else:
            self._callback()

    def cancel(self) -> None:
        self._handle.cancel()
