"""Deadlines for what comes from a network, which a stall of this process does not bring about.

After a stall an event loop runs its timers before it reads its sockets, and a task that a timer
cancels loses what it was about to get. So a deadline that has passed does not count at once: the
loop gets `PASSES` passes, in which it reads what came meanwhile and takes the steps that follow.
They take no time if the peer is slow, and as long as needed if this process is busy.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Final

PASSES: Final = 20  # a handshake over TLS takes several steps
PASS_SECONDS: Final = 0.001


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

    def _look(self, expired: Callable[[], None], passes_left: int = PASSES) -> None:
        self._timer = None
        now = self._loop.time()
        if now < self._at:
            if self._at != inf:
                self._timer = self._loop.call_at(self._at, self._look, expired)
        elif passes_left:
            again = now + PASS_SECONDS
            self._timer = self._loop.call_at(again, self._look, expired, passes_left - 1)
        else:
            self._at = inf
            expired()


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """Limit the time of the block: it raises TimeoutError, as that of `asyncio.timeout` does."""
    loop = asyncio.get_running_loop()
    deadline = Deadline(loop)
    async with asyncio.timeout(None) as limit:

        def end() -> None:
            if not limit.expired():  # its holder may have ended it just now
                limit.reschedule(loop.time())

        deadline.expect_within(seconds, end)
        try:
            yield limit
        finally:
            deadline.stop()
