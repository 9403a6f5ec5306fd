"""Timers that fire within a fraction of a millisecond of their moment, and never before it.

Loops are too coarse for a pace: uvloop rounds delays to milliseconds and asyncio's selector waits
in whole ones. A send that is a millisecond late makes all after it late, for the pace counts from
it. So the earliest of our timers arms a timer of the kernel, whose descriptor the loop watches:
timerfd_create(2), on the clock that time.monotonic() reads.

Invariants: the kernel's timer is armed for the first of the heap, or for a moment before it. A
cancelled timer stays in the heap until it comes to the front, or until most of the heap is
cancelled. Where there is no timerfd, `Timers` are not to be made: see `is_supported`.
"""

import asyncio
import ctypes
import heapq
import os
import sys
import time
import weakref
from collections.abc import Callable
from itertools import count
from math import ceil, inf
from typing import Final

is_supported: Final = sys.platform == "linux"

_NANOSECONDS: Final = 1_000_000_000
_KEPT: Final = 100  # cancelled timers that are not worth tidying up

if sys.version_info >= (3, 13):

    def _create() -> int:
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)

    def _arm(descriptor: int, nanoseconds: int) -> None:
        os.timerfd_settime_ns(descriptor, initial=nanoseconds)

elif is_supported:
    _libc: Final = ctypes.CDLL(None, use_errno=True)

    class _Times(ctypes.Structure):
        """A `struct itimerspec`: an interval, which is not used, and the first moment."""

        _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))

    def _create() -> int:
        descriptor: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise _failure()
        return descriptor

    def _arm(descriptor: int, nanoseconds: int) -> None:
        times = _Times(value=divmod(nanoseconds, _NANOSECONDS))
        if _libc.timerfd_settime(descriptor, 0, ctypes.byref(times), None) < 0:
            raise _failure()

    def _failure() -> OSError:
        number = ctypes.get_errno()
        return OSError(number, os.strerror(number))


class Timers:
    """The timers of one loop. Raises OSError if the process has no descriptor left."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._heap: list[tuple[float, int, PreciseTimer]] = []
        self._numbers = count()  # so that timers of one moment fire in order
        self._cancelled = 0
        self._armed_for = inf
        self.descriptor = _create()
        weakref.finalize(self, os.close, self.descriptor)
        loop.add_reader(self.descriptor, self._fire)

    def call_at(self, when: float, callback: Callable[[], object]) -> "PreciseTimer":
        """Call back from the loop once time.monotonic() has reached `when`."""
        timer = PreciseTimer(self, callback)
        heapq.heappush(self._heap, (when, next(self._numbers), timer))
        if when < self._armed_for:
            self._arm(when)
        return timer

    def cancelled(self) -> None:
        """Count a timer that was cancelled, and tidy up if most were."""
        self._cancelled += 1
        if self._cancelled > _KEPT and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _fire(self) -> None:
        """Call what is due. Should one raise, the loop tells of it, and calls the others next."""
        now = time.monotonic()
        try:
            while self._heap and self._heap[0][0] <= now:
                _, _, timer = heapq.heappop(self._heap)
                if timer.callback is None:
                    self._cancelled -= 1
                else:
                    timer.fire()
        finally:
            self._arm(self._heap[0][0] if self._heap else inf)

    def _arm(self, when: float) -> None:
        """Set the kernel's timer, or stop it (0); a moment that is past is due at once."""
        self._armed_for = when
        delay = when - time.monotonic()
        _arm(self.descriptor, 0 if when == inf else max(1, ceil(delay * _NANOSECONDS)))


class PreciseTimer:
    """One callback that is still to come."""

    __slots__ = ("_timers", "callback")

    def __init__(self, timers: Timers, callback: Callable[[], object]) -> None:
        self._timers = timers
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Keep the callback from being called; once it has been, nothing happens."""
        if self.callback is not None:
            self.callback = None
            self._timers.cancelled()

    def fire(self) -> None:
        """Call back, once."""
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()
