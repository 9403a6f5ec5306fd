"""The waits outside the lines, which the end of the proxy cuts short.

Whoever waits for a body, for a token or for the time of another try has sent nothing that could
have been carried out, and is told `draining` at once. The lines do the same for those in them; what
has been sent is not waited for here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.lines import draining


class Drain:
    """Knows whether the end has begun, and who is to be told."""

    def __init__(self) -> None:
        self.has_begun = False
        self._waits: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """End every wait, and from now on each as it begins."""
        if not self.has_begun:
            self.has_begun = True
            for wait in self._waits:
                wait.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def interrupts(self) -> AsyncIterator[None]:
        """Leave the block with the Problem `draining` as soon as the end begins."""
        if self.has_begun:
            raise draining()
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if wait.expired():
                raise draining() from None
            raise
