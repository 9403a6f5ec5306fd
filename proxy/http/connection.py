"""One connection to a server, and the answer that comes on it.

A body that breaks off fails its reader, whatever broke it. Private names of the library that are
used here: `_payload`, the body that its protocol parses, for only this class may fail it in time;
`_EXC_SENTINEL`, the default of an argument of `set_exception`, which is overridden.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from proxy.rules.headers import Field, is_writable, response_fields, wire_fields

_POLL_CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class UpstreamProtocol(ResponseHandler):
    """A connection that fails the reader of a body when the body breaks off.

    The library reports a reset only where the body has a length, and its own parser's refusal or a
    close from here not at all: the reader would wait for ever, or see a clean end.
    """

    is_fresh = True  # no request was ever to be written to it

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        self._break_off(exc)
        super().set_exception(exc, exc_cause)

    def close(self) -> None:
        self._break_off(aiohttp.ClientConnectionError("closed"))
        super().close()

    def abort(self) -> None:
        self._break_off(aiohttp.ClientConnectionError("given up"))
        super().abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None:
            self._break_off(exc)
        super().connection_lost(exc)

    def time_out(self) -> None:
        """End the wait for the head of an answer: it did not come in time."""
        self.set_exception(aiohttp.SocketTimeoutError("no head in time"))

    def is_usable(self) -> bool:
        """True if it is open, and what comes next on it can only be the answer.

        Of a connection that was used before, nothing may be readable, even what the event loop has
        not noticed yet. A fresh one is excused: over TLS 1.3 session tickets come first.
        """
        events = _POLL_CLOSED if self.is_fresh else _POLL_CLOSED | select.POLLIN
        return not self.should_close and not _is_any_of(events, self.transport)

    def _break_off(self, error: BaseException) -> None:
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(error)


class Response:
    """An answer whose head has come.

    Its connection goes back to the pool when the body has come, too; release one that is not read
    to its end, which closes the connection.
    """

    __slots__ = (
        "_connection",
        "_kept",
        "_message",
        "_on_release",
        "content",
        "headers",
        "status",
    )

    def __init__(
        self, connection: Connection, message: RawResponseMessage, content: StreamReader
    ) -> None:
        self.status = message.code
        self.headers: CIMultiDictProxy[str] = message.headers
        self.content = content
        self._kept = b""
        self._message = message
        self._connection = connection
        self._on_release: Callable[[], None] | None = None
        content.on_eof(self.release)

    @property
    def is_complete(self) -> bool:
        """True if the body has come already: nothing has to wait for it."""
        return self.content.is_eof() and self.content.exception() is None

    def keep(self, data: bytes) -> None:
        """Take back what was read of the body; the next read returns it first."""
        self._kept = data

    def read_nowait(self) -> bytes:
        """Return what has come of the body and was not read."""
        kept, self._kept = self._kept, b""
        return kept + self.content.read_nowait()

    async def read_any(self) -> bytes:
        """Return what comes next of the body, nothing at its end; raises the library's errors."""
        kept, self._kept = self._kept, b""
        return kept or await self.content.readany()

    def head(self) -> tuple[str, list[Field]]:
        """Return the reason phrase and the end-to-end fields."""
        reason = self._message.reason or ""
        return (
            reason if is_writable(reason) else "",
            response_fields(
                wire_fields(self._message.raw_headers), self.headers.getall("Connection", ())
            ),
        )

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call that once when the answer, not complete yet, is released."""
        self._on_release = callback

    def release(self) -> None:
        """Give the connection back, or close it if some of the body is still to come."""
        self._connection.release()
        callback, self._on_release = self._on_release, None
        if callback is not None:
            callback()


def is_closed_by_peer(transport: asyncio.BaseTransport | None) -> bool:
    """True if the other side has closed, even if the event loop has not noticed yet."""
    return _is_any_of(_POLL_CLOSED, transport)


def _is_any_of(events: int, transport: asyncio.BaseTransport | None) -> bool:
    """True if any of these events of poll(2) has come, or the transport is closing."""
    if transport is None or transport.is_closing():
        return True
    socket = transport.get_extra_info("socket")
    poll = select.poll()
    poll.register(socket.fileno(), events)
    return bool(poll.poll(0))
