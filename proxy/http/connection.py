"""One connection to a server: one request at a time, and one answer to each.

Invariants:
- Every byte that comes belongs to the answer of the current request, or makes the connection
  unusable.
- A reset, a close, a timeout or bad bytes before the end of an answer fail its reader.
- `is_reusable` holds only at the end of a message, in both directions; anything else is aborted.
"""

import asyncio
import select
from collections.abc import Callable
from typing import cast

import aiohttp
from aiohttp.http import HttpProcessingError, RawResponseMessage

from proxy.http.inflow import Inflow
from proxy.http.reading import AnswerReader, Limits
from proxy.http.sockets import CLOSED, poll_of


class Connection(asyncio.Protocol):
    """A connection that is asked by `ask`, awaited by `answer`, and read from the answer's body."""

    __slots__ = (
        "_error",
        "_inflow",
        "_is_over",
        "_limits",
        "_loop",
        "_poll",
        "_reader",
        "_waiter",
        "idle_since",
        "is_fresh",
        "is_tls",
        "on_lost",
        "transport",
    )

    def __init__(self, limits: Limits) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._poll: select.poll | None = None
        self._reader: AnswerReader | None = None  # of what was asked last, until it is done with
        self._waiter: asyncio.Future[None] | None = None  # for its head
        self._inflow = Inflow(self._loop, limits.seconds)
        self._error: BaseException | None = None
        self._is_over = False  # what comes from now on is ignored
        self.on_lost: Callable[[Connection], None] = lambda _: None
        self.transport: asyncio.Transport | None = None
        self.is_fresh = True  # nothing was ever asked
        self.is_tls = False
        self.idle_since = 0.0

    def __repr__(self) -> str:
        state = "over" if self._is_over else "asked" if self._reader else "idle"
        return f"<Connection {state}{', fresh' if self.is_fresh else ''}>"

    # What the pool asks

    def is_usable(self) -> bool:
        """True if it is open, and the next bytes on it can only be the answer.

        Nothing may be readable, even if the event loop has not noticed it yet. A new connection
        over TLS is exempt: session tickets come first.
        """
        transport = self.transport
        if self._is_over or transport is None or transport.is_closing():
            return False
        if self._poll is None:
            self._poll = poll_of(transport, CLOSED | select.POLLIN)
        events = self._poll.poll(0)
        return not events or (
            self.is_fresh and self.is_tls and not any(mask & CLOSED for _, mask in events)
        )

    def is_reusable(self) -> bool:
        """True if it may carry another message."""
        message = self._reader.message if self._reader is not None else None
        return self._is_at_an_end() and not (message is not None and message.should_close)

    def _is_at_an_end(self) -> bool:
        """True if it is at the end of a message, both ways."""
        transport, reader = self.transport, self._reader
        if self._is_over or transport is None or transport.is_closing():
            return False
        if reader is None:
            return True  # nothing was asked
        return reader.is_whole and not reader.is_followed and not transport.get_write_buffer_size()

    def rest(self) -> None:
        """Forget the complete answer; expect nothing now."""
        self._reader = None
        self._inflow.rest()

    def close(self) -> None:
        """Close it: in order at the end of a message, else at once."""
        if self.transport is not None and self._is_at_an_end():
            self._is_over = True
            self._inflow.end()
            self.transport.close()
        else:
            self.abort(ConnectionAbortedError("closed"))

    def abort(self, error: BaseException) -> None:
        """Break it off at once, and fail what waits for an answer on it."""
        self._fail(error)
        if self.transport is not None:
            self.transport.abort()

    def detach(self) -> asyncio.Transport | None:
        """Return the transport, for another protocol that takes over."""
        transport, self.transport = self.transport, None
        self._is_over = True
        self._inflow.end()
        return transport

    # Asking

    def ask(self, request: bytes, *, has_body: bool) -> None:
        """Write a whole request; its answer has a body or, to HEAD, none."""
        assert self.transport is not None  # noqa: S101 -- for the type checker
        self.is_fresh = False
        self._reader = AnswerReader(self._inflow, self._loop, self._limits, has_body=has_body)
        self.transport.write(request)
        self._inflow.expect()

    @property
    def has_received(self) -> bool:
        """True if anything has come since it was asked."""
        return self._reader is not None and self._reader.has_received

    @property
    def is_waiting(self) -> bool:
        """True until a final head or an error has come."""
        return self._error is None and self._reader is not None and self._reader.message is None

    async def answer(self) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        """Return the head of the final answer, and its body, which is still to come.

        Raises TimeoutError, ConnectionError or HttpProcessingError, the latter also if the bytes
        that came with the head spoil the answer.
        """
        if self.is_waiting:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        reader = self._reader
        if isinstance(self._error, HttpProcessingError):
            raise self._error
        if reader is None or reader.message is None or reader.content is None:
            raise self._error or ConnectionResetError("closed without an answer")
        if reader.is_followed:
            raise HttpProcessingError(message="something follows the answer")
        return reader.message, reader.content

    # What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._inflow.begin(self.transport, self._expire)
        self.is_tls = transport.get_extra_info("ssl_object") is not None

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if self._is_over:
            return
        if reader is None:
            self.abort(ConnectionAbortedError("something came unasked"))
            return
        try:
            reader.feed(data)
        except HttpProcessingError as error:
            self.abort(error)
            return
        if reader is self._reader:
            if reader.content is not None:
                if reader.content.is_eof() or self._inflow.is_paused:
                    self._inflow.rest()
                else:
                    self._inflow.expect()
                self._wake()
        elif reader.is_followed:  # the answer was good, and it is with its reader
            self.abort(ConnectionAbortedError("something follows the answer"))

    def connection_lost(self, exc: BaseException | None) -> None:
        reader = self._reader
        if exc is None and not self._is_over and reader is not None and reader.ends_by_close:
            assert reader.content is not None  # noqa: S101 -- for the type checker
            self._is_over = True
            self._inflow.end()
            reader.content.feed_eof()
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError("closed"))
        self.transport = None
        self.on_lost(self)

    def _expire(self) -> None:
        self.abort(TimeoutError("nothing came in time"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """Give the answer's reader the error that ended it, unless the answer is complete."""
        self._is_over = True
        self._inflow.end()
        if self._error is None:
            self._error = error
        if self._reader is not None:
            self._reader.fail(error)
        self._wake()
