"""Permits to use a connection: so many at once, first come first served.

A permit that comes free is handed to the first waiter and never put down in between: so a newcomer
cannot overtake, and a waiter that is cancelled with the permit in its hands passes it on.
"""

import asyncio
from collections import deque


class Permits:
    """Hands out permits."""

    __slots__ = ("_waiting", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Permits {self.taken} taken, {len(self._waiting)} wait>"

    @property
    def has_waiters(self) -> bool:
        """True if somebody may be waiting for a permit."""
        return bool(self._waiting)

    def take_free(self, limit: int) -> bool:
        """Take a permit if fewer than `limit` are taken; False if not."""
        if self.taken >= limit:
            return False
        self.taken += 1
        return True

    async def take(self, limit: int) -> None:
        """Wait for a permit, in order of arrival."""
        if self.take_free(limit):
            return
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(permit)
        try:
            await permit
        except BaseException:
            if permit.done() and not permit.cancelled():
                self.give_back()
            elif permit in self._waiting:
                self._waiting.remove(permit)
            raise

    def give_back(self) -> None:
        """Hand a permit to the first that waits, or put it down."""
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(None)
                return
        self.taken -= 1
