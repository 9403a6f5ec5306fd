"""How long the machine kept this process waiting, so that a test of times can allow for just that.

A stamp that is taken in the loop of the test is late by the longest stall at most; what the program
does in a process of its own is late by about as much, since most stalls are the whole machine's.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.clock import SystemClock

TICK = 0.005

_clock = SystemClock()


class Stalls:
    """Seconds: the longest of them, and all together."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.total = 0.0

    async def watch(self) -> None:
        while True:
            due = _clock.monotonic() + TICK
            await _clock.sleep_until(due)
            late = _clock.monotonic() - due
            self.longest = max(self.longest, late)
            self.total += late if late > TICK else 0.0


@asynccontextmanager
async def noting_stalls() -> AsyncIterator[Stalls]:
    stalls = Stalls()
    watching = asyncio.get_running_loop().create_task(stalls.watch())
    try:
        yield stalls
        await _clock.sleep_until(_clock.monotonic() + TICK)  # one that lasts still is noted, too
    finally:
        watching.cancel()
        await asyncio.wait([watching])
