"""An answer of a server whose head has come, and whose body may still be coming."""

from collections.abc import Callable

import aiohttp
from aiohttp.http import RawResponseMessage
from multidict import CIMultiDictProxy

from proxy.rules.headers import Field, is_writable, response_fields


class Response:
    """An answer whose head has come.

    Its connection goes back to the pool when the body has come, too. Release one that is not read
    to its end, which breaks the connection off.
    """

    __slots__ = (
        "_give_back",
        "_kept",
        "_message",
        "_on_release",
        "content",
        "headers",
        "is_complete",
        "status",
    )

    def __init__(
        self,
        message: RawResponseMessage,
        content: aiohttp.StreamReader,
        give_back: Callable[[], None],
    ) -> None:
        self.status = message.code
        self.headers: CIMultiDictProxy[str] = message.headers
        self.content = content
        self._kept = b""
        self._message = message
        self._give_back: Callable[[], None] | None = give_back
        self._on_release: Callable[[], None] | None = None
        self.is_complete = False  # True once the body has come: nothing has to wait for it
        content.on_eof(self._complete)

    def keep(self, data: bytes) -> None:
        """Put back bytes that were read of the body; the next read returns them first."""
        self._kept = data

    def read_nowait(self) -> bytes:
        """Return the body bytes that have come and were not read."""
        kept, self._kept = self._kept, b""
        return kept + self.content.read_nowait()

    async def read_any(self) -> bytes:
        """Return what comes next of the body, nothing at its end.

        Raises TimeoutError, ConnectionError or HttpProcessingError if it breaks off.
        """
        kept, self._kept = self._kept, b""
        return kept or await self.content.readany()

    def head(self) -> tuple[str, list[Field]]:
        """Return the reason phrase and the end-to-end fields."""
        reason = self._message.reason or ""
        return (
            reason if is_writable(reason) else "",
            response_fields(
                self._message.raw_headers,
                self.headers.values(),
                self.headers.getall("Connection", ()),
            ),
        )

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the incomplete answer is released."""
        self._on_release = callback

    def _complete(self) -> None:
        self.is_complete = True
        self.release()

    def release(self) -> None:
        """Give the connection back; it is broken off if some of the body is still to come."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()
        callback, self._on_release = self._on_release, None
        if callback is not None:
            callback()
