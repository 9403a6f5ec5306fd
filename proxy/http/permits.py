"""Permits to use a connection: a bounded number, first come first served.

A free permit goes directly to the first waiter, so a new request cannot overtake it. A waiter that
is cancelled after it got the permit passes it on.
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
        """True if there may be waiters for a permit."""
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
        """Give a permit to the first waiter, or mark it as free."""
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(None)
                return
        self.taken -= 1
