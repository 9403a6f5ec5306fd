"""The addresses of one host: one look-up serves all that connect at a time, and is kept a while."""

import asyncio
import socket
from typing import Any, Final

from proxy.settings.files import aside

_SECONDS: Final = 10  # an address that changed is noticed after this long

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]


class Addresses:
    """Returns all addresses of `host`, each time with another one first."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._known: list[AddressInfo] = []
        self._known_until = 0.0
        self._lookup: asyncio.Task[None] | None = None

    async def get(self) -> list[AddressInfo]:
        """Return the addresses; raises OSError.

        If one caller is cancelled, the look-up goes on for the others.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._known_until:
            if self._lookup is None or self._lookup.done():
                self._lookup = loop.create_task(self._look_up(loop))
                self._lookup.add_done_callback(_mark_as_seen)
            await asyncio.shield(self._lookup)
        self._known = self._known[1:] + self._known[:1]
        return list(self._known)

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        try:  # an address needs no look-up, and so no thread
            found = self._ask(socket.AI_NUMERICHOST)
        except OSError:
            # Not in a thread of the loop: all may be busy, and the process would wait for its end.
            found = await aside(lambda: self._ask(socket.AI_ADDRCONFIG))
        self._known = found
        self._known_until = loop.time() + _SECONDS

    def _ask(self, flags: int) -> list[AddressInfo]:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except UnicodeError:  # a part of the name is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, "not a name") from None
        return list(found)

    async def close(self) -> None:
        """End a look-up that is under way."""
        if self._lookup is not None:
            self._lookup.cancel()
            await asyncio.wait([self._lookup])


def _mark_as_seen(lookup: "asyncio.Task[None]") -> None:
    """Retrieve an error that no caller awaits any more; a cancelled task has none."""
    if not lookup.cancelled():
        lookup.exception()
