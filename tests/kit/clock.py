"""A clock that stands still until a test advances it.

It governs only waits made through the clock. `asyncio.timeout`, aiohttp's timeouts and Redis expiry
keep real time; and a byte in a socket is not a task, so where sockets are involved wait for what
shows that it arrived (`RawUpstream.received`), then advance.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.clock import Clock, Timer

NANOSECOND = 1e-9
MANY_YIELDS = 100_000
YIELDS_WHEN_BLIND = 100


@dataclass(order=True, slots=True)
class _Entry:
    when: float
    order: int
    callback: Callable[[], object] = field(compare=False)
    is_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeClock(Clock):
    """Both clocks, moved by `advance`; the wall clock alone by `jump_wall`."""

    def __init__(self, *, start: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self._now = start
        self._wall_offset = wall - start
        self._entries: list[_Entry] = []
        self._order = itertools.count()
        self._is_advancing = False

    def __repr__(self) -> str:
        return f"<FakeClock at {self._now}, {self.pending} pending>"

    @property
    def pending(self) -> int:
        """How many callbacks and sleepers time still holds."""
        return sum(not entry.is_cancelled for entry in self._entries)

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._wall_offset

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP would."""
        self._wall_offset += seconds

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        if when <= self._now and not self._is_advancing:
            return asyncio.get_running_loop().call_soon(callback)
        entry = _Entry(when, next(self._order), callback)
        heapq.heappush(self._entries, entry)
        return entry

    async def advance(self, seconds: float) -> None:
        """Live through `seconds`, deadline by deadline, the way real time would pass.

        Everything ready runs before time moves. Then one deadline at a time, first come first woken
        where several are equal, and whatever it set going runs before the next.
        """
        if seconds < 0 or self._is_advancing:
            raise ValueError("time goes forward, and one advance at a time")
        target = self._now + seconds
        self._is_advancing = True
        try:
            await _let_tasks_run()
            # Eight times 0.1 falls short of 0.8 by a rounding error: a nanosecond forgives that.
            while self._entries and self._entries[0].when <= target + NANOSECOND:
                entry = heapq.heappop(self._entries)
                if not entry.is_cancelled:
                    self._now = max(self._now, entry.when)
                    entry.callback()
                    await _let_tasks_run()
            self._now = max(self._now, target)
        finally:
            self._is_advancing = False


async def _let_tasks_run() -> None:
    """Yield until the loop has nothing left to run but us.

    A yield polls the sockets too, and what it finds readable joins the queue behind us: an empty
    queue after a yield means that nothing was ready. uvloop hides its queue; there we yield often
    enough for any chain of callbacks a test is likely to build.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    for _ in range(YIELDS_WHEN_BLIND if ready is None else MANY_YIELDS):
        await asyncio.sleep(0)  # noqa: TID251 - yields, and waits for no clock
        if ready is not None and not ready:
            return
    if ready is not None:
        raise RuntimeError("the tasks never come to rest: one of them spins")
