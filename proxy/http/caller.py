"""One connection of a caller to the listen port: heads in, requests out, one at a time.

Of the HTTP library it uses the parser of heads. A head is fed to a parser of its own, up to its
empty line and no further; the body behind it is framed by `IncomingBody`. So it is known of each
byte what it belongs to, and what bytes mean does not depend on how they were cut.

A connection is in one of these states:

* *head*: the next head is awaited, or comes. It has `header_timeout` seconds in all, after which
  the connection is closed unanswered, and `max_header` bytes.
* *serving*: the handler's task runs; when the caller goes away it is cancelled. The body is
  collected meanwhile. Bytes behind it are kept for their turn: at most `max_header` and one
  receive of them, counted in `max_buffered`; then reading stops, and without room they are dropped
  and the connection ends with the answer.
* *flushing*: the answer is written, and the caller has not taken enough of it yet. The next head
  is not read before.
* *lingering*: the last answer is written and the caller may still be sending. To close now could
  destroy the answer on its way (RFC 9112 section 9.6), so for two seconds what comes is discarded.

A parser's refusal is answered in our words and never with the line it refuses, which may hold a
token; it is not logged at all.
"""

import asyncio
import secrets
import select
import socket
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from aiohttp.http import HttpProcessingError, HttpRequestParser

from proxy.http.incoming import IncomingBody
from proxy.http.request import Request
from proxy.http.sockets import CLOSED, poll_of
from proxy.problems import Problem

if TYPE_CHECKING:
    from proxy.http.listener import Listener

_log = structlog.get_logger(__name__)

_LINGERING: Final = 2.0  # seconds in which what is sent after the last answer is discarded
_MAX_FIELDS: Final = 128
_HEAD_END: Final = b"\r\n\r\n"
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux; tcp(7)


class _Nobody:
    """Stands for the protocol that the parser would tell of a body that has ended (CONNECT)."""

    def resume_reading(self, *_: object, **__: object) -> None:
        pass


_NOBODY: Final[Any] = _Nobody()


class _State(Enum):
    HEAD = auto()
    SERVING = auto()
    FLUSHING = auto()
    LINGERING = auto()
    CLOSED = auto()


class CallerConnection(asyncio.Protocol):
    """The protocol of one connection; `listener` has the limits and the handler."""

    __slots__ = (
        "_deadline",
        "_drained",
        "_early",
        "_end",
        "_head_size",
        "_is_dropping",
        "_is_paused",
        "_listener",
        "_loop",
        "_parser",
        "_peer",
        "_poll",
        "_request",
        "_state",
        "_timer",
        "is_full",
        "task",
        "transport",
    )

    def __init__(self, listener: "Listener") -> None:
        self.transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_full = False
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._peer = ""
        self._poll: select.poll | None = None
        self._state = _State.HEAD
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._parser: HttpRequestParser | None = None
        self._head_size = 0
        self._end = b""  # the last bytes of a head that has not ended
        self._request: Request | None = None
        self._early = bytearray()
        self._is_paused = False
        self._is_dropping = False
        self._drained: asyncio.Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        """True if no request is under way."""
        return self._state in {_State.HEAD, _State.LINGERING}

    @property
    def may_stay(self) -> bool:
        """True if another request may follow the one under way."""
        return not (self._is_dropping or self._listener.is_closing)

    def is_present(self) -> bool:
        """True if the caller has not closed, as its socket says in this very moment."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        if self._poll is None:
            self._poll = poll_of(transport, CLOSED)
        return not self._poll.poll(0)

    def date(self) -> str:
        """Return the time, as a Date field has it."""
        return self._listener.date()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)
        self._peer = _address(transport)
        if not self._listener.admit(self, self._peer):
            self._state = _State.CLOSED
            transport.abort()
            return
        _set_options(transport, self._listener.write_timeout)
        self._await_head()

    def connection_lost(self, _: BaseException | None) -> None:
        self.transport = None
        self._state = _State.CLOSED
        self._drop_early()
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None:
            self.task.cancel()
        if self._request is not None and self._request.body is not None:
            self._request.body.drop()
        self._request = None  # it refers to this connection, and nothing looks for such circles
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError("the caller is gone"))
        self._listener.forget(self, self._peer)

    def data_received(self, data: bytes) -> None:
        match self._state:
            case _State.HEAD:
                self._read_head(data)
            case _State.SERVING | _State.FLUSHING:
                self._receive(data)
            case _:
                pass  # discarded

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._state is _State.FLUSHING:
            self._next()

    async def drained(self) -> None:
        """Wait until the caller has taken enough."""
        while self.is_full and self.transport is not None:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    async def flushed(self) -> None:
        """Wait until all that is written has left. Raises ConnectionError if the caller is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the caller is gone")
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(high=1, low=0)
            try:
                await self.drained()
            finally:
                if not transport.is_closing():
                    transport.set_write_buffer_limits()
        if self.transport is None:
            raise ConnectionResetError("the caller is gone")

    def close(self) -> None:
        """End the connection if no request is under way, else with the answer."""
        if self.is_idle and self.transport is not None:
            self._state = _State.CLOSED
            self.transport.close()

    # Heads

    def _await_head(self) -> None:
        self._state = _State.HEAD
        seconds = self._listener.limits.header_timeout
        self._deadline = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        """Close a connection whose head is late; the timer outlives the heads that are not."""
        self._timer = None
        if self._state is not _State.HEAD:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look_at_deadline)
        else:
            self.close()

    def _read_head(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2
            if not data:
                return
            parser = self._parser = self._make_parser()
        size, limit = self._head_size, self._listener.limits.max_header
        end = _end_of_head(self._end, data)
        head = data if end is None else data[:end]
        try:
            messages, _, _ = parser.feed_data(head[: limit - size])
        except (HttpProcessingError, ValueError):
            self._refuse(_malformed())
            return
        if size + len(head) > limit:
            self._refuse(_too_long())
        elif end is None and not messages:
            self._head_size = size + len(head)
            self._end = (self._end + head[-3:])[-3:]
        elif end is None or len(messages) != 1:
            self._refuse(_malformed())
        else:
            self._parser, self._head_size, self._end = None, 0, b""
            self._serve(Request(messages[0][0], self, self._peer), data[end:])

    def _make_parser(self) -> HttpRequestParser:
        limit = self._listener.limits.max_header
        return HttpRequestParser(
            _NOBODY,
            self._loop,
            limit,
            max_line_size=limit,
            max_field_size=limit,
            max_headers=_MAX_FIELDS,
            auto_decompress=False,
        )

    def _refuse(self, problem: Problem) -> None:
        """Answer a head that is no request, and read no other."""
        assert self.transport is not None  # noqa: S101 -- for the type checker
        self._parser = None
        self.transport.write(self._listener.refusal(problem, secrets.token_hex(16)))
        self._linger()

    # Requests

    def _serve(self, request: Request, behind: bytes) -> None:
        self._state = _State.SERVING
        self._request = request
        headers = request.headers
        if "Transfer-Encoding" in headers:
            if request.is_chunked:
                request.body = IncomingBody(self._listener.room, self._peer, None)
            else:  # nobody knows where it ends; the handler refuses it
                self._is_dropping = True
        elif "Content-Length" in headers and (length := int(headers["Content-Length"])):
            request.body = IncomingBody(self._listener.room, self._peer, length)
        if behind:
            self._receive(behind)
        self.task = self._loop.create_task(self._run(request))

    async def _run(self, request: Request) -> None:
        try:
            await self._listener.handle(request)
        except ConnectionError:
            pass  # the caller is gone
        except Exception:  # noqa: BLE001 -- the last guard: a bug is logged and answered
            _log.exception("a request failed outside its handler")
        finally:
            self.task = None
            if request.body is not None:
                request.body.drop()
            self._end_request(request)

    def _end_request(self, request: Request) -> None:
        """Go on with the next request, or close."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if not request.is_answered:
            if not request.is_begun and not self._listener.is_closing:
                problem = Problem("internal", "The proxy failed; see its log.", close=True)
                transport.write(self._listener.refusal(problem, secrets.token_hex(16)))
                self._linger()
            else:
                request.abort()
        elif not request.stays:
            is_at_end = request.is_whole and not (self._early or self._is_paused)
            if (is_at_end and not self._is_dropping) or request.is_late:
                self._state = _State.CLOSED
                transport.close()
            else:
                self._linger()
        elif self._listener.is_closing:
            self._state = _State.CLOSED
            transport.close()
        elif self.is_full:
            self._state = _State.FLUSHING
        else:
            self._next()

    def _next(self) -> None:
        self._request = None
        self._await_head()
        if self._early:
            data = bytes(self._early)
            self._drop_early()
            self._resume_reading()
            self._read_head(data)

    def _receive(self, data: bytes) -> None:
        """Take what belongs to the body, and keep what is behind it for its turn."""
        request = self._request
        if request is not None and request.body is not None and not request.body.is_complete:
            data = request.body.feed(data)
        if not data or self._is_dropping:
            return
        if not self._listener.room.take(self._peer, len(data)):
            self._drop_early()
            self._is_dropping = True
            return
        self._early += data
        if len(self._early) > self._listener.limits.max_header and self.transport is not None:
            self._is_paused = True
            self.transport.pause_reading()

    def _drop_early(self) -> None:
        if self._early:
            self._listener.room.give_back(self._peer, len(self._early))
            self._early.clear()

    def _resume_reading(self) -> None:
        if self._is_paused and self.transport is not None:
            self._is_paused = False
            self.transport.resume_reading()

    def _linger(self) -> None:
        assert self.transport is not None  # noqa: S101 -- for the type checker
        self._state = _State.LINGERING
        self._drop_early()
        self._resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_LINGERING, self.close)


def _end_of_head(before: bytes, data: bytes) -> int | None:
    """Return where in `data` a head ends; `before` are the last three bytes that came before."""
    if before:
        end = (before + data[:3]).find(_HEAD_END)
        if end >= 0:
            return end + len(_HEAD_END) - len(before)
    end = data.find(_HEAD_END)
    return None if end < 0 else end + len(_HEAD_END)


def _too_long() -> Problem:
    return Problem("too-large", "The head is too long.", status=431, close=True)


def _malformed() -> Problem:
    return Problem("bad-request", "The request is not valid HTTP.", close=True)


def _address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""


def _set_options(transport: asyncio.BaseTransport, write_timeout: float) -> None:
    """Find out that a caller vanished, or takes nothing of an answer for so many seconds.

    The kernel ends the connection then, even if all is written and closed, and only the caller's
    window is in the way.
    """
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _TCP_USER_TIMEOUT is not None:
        milliseconds = max(1, int(write_timeout * 1000))
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, milliseconds)
