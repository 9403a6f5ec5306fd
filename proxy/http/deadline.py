"""A moment by which something must come, on one connection."""

import asyncio
from collections.abc import Callable
from math import inf


class Deadline:
    """Calls back once a moment has passed, unless another one was set meanwhile.

    One timer serves many moments, each later than the one before: when it fires it checks whether
    there is a newer one. `stop` drops the callback too, which usually refers to the deadline's
    owner.
    """

    __slots__ = ("_at", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._at = inf
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Deadline {self._at}>"

    def expect_within(self, seconds: float, expired: Callable[[], None]) -> None:
        """Call `expired` after that many seconds; every call until `stop` passes the same one."""
        self._at = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._at, self._look, expired)

    def clear(self) -> None:
        """Expect nothing for now."""
        self._at = inf

    def stop(self) -> None:
        """Expect nothing more."""
        self._at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, expired: Callable[[], None]) -> None:
        self._timer = None
        if self._loop.time() >= self._at:
            self._at = inf
            expired()
        elif self._at != inf:
            self._timer = self._loop.call_at(self._at, self._look, expired)
