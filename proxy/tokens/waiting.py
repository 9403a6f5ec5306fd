"""The waits around a mint: the task waits for the next one, requests for its end.

A cancelled request stops waiting; the mint goes on.
"""

import asyncio
from math import inf

from proxy.clock import Clock


class Alarm:
    """Wakes the task of a token at a set time, or earlier on request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the task now."""
        self._rung.set()

    async def sleep_until(self, when: float) -> None:
        """Sleep until then, or until the alarm rings."""
        self._rung.clear()
        timer = self._clock.call_at(when, self._rung.set)
        try:
            await self._rung.wait()
        finally:
            timer.cancel()


class MintWaiters:
    """The requests that wait for the end of one account's next mint."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._futures: set[asyncio.Future[bool]] = set()

    async def wait(self, deadline: float) -> bool:
        """Wait for the end of a mint; False when the deadline, or the end of the task, is first."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        timer = None
        if deadline < inf:
            timer = self._clock.call_at(deadline, lambda: _settle(future, has_minted=False))
        self._futures.add(future)
        try:
            return await future
        finally:
            self._futures.discard(future)
            if timer is not None:
                timer.cancel()

    def wake(self, *, has_minted: bool) -> None:
        """End all waits."""
        for future in self._futures:
            _settle(future, has_minted=has_minted)


def _settle(future: asyncio.Future[bool], *, has_minted: bool) -> None:
    if not future.done():
        future.set_result(has_minted)
