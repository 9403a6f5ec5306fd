"""One connection of a caller to one of the ports: heads in, requests out, one at a time.

`HeadReader` reads a head up to its empty line and no further; `IncomingBody` frames the body behind
it; `EarlyBytes` keeps the bytes that follow. So each byte belongs to exactly one of them.

A connection is in one of these states:

* *head*: the connection waits for the next head, or reads it. The head has `max_header` bytes, and
  `header_timeout` seconds in all; then the connection is closed unanswered.
* *serving*: the handler's task runs; if the caller leaves, the task is cancelled. Meanwhile the
  body is collected. Bytes behind it are kept for their turn: at most `max_header` and one receive,
  counted in `max_buffered`; then reading stops. Without room they are dropped, and the connection
  ends with the answer.
* *flushing*: the answer is written, and the caller has not taken enough of it yet. The next head
  is not read before.
* *lingering*: the last answer is written and the caller may still be sending. To close now could
  destroy the answer on its way (RFC 9112 section 9.6), so for two seconds all input is discarded.
"""

import asyncio
import secrets
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, cast

import structlog

from proxy.deadlines import Deadline
from proxy.http.admission import Place
from proxy.http.early import EarlyBytes
from proxy.http.head_reader import HeadReader
from proxy.http.incoming import IncomingBody
from proxy.http.outflow import Outflow
from proxy.http.peer_socket import VANISHED, PeerSocket
from proxy.http.request import Request
from proxy.problems import Problem
from proxy.rules.headers import content_length

if TYPE_CHECKING:
    from proxy.http.listener import Listener

_log = structlog.get_logger(__name__)

_LINGERING: Final = 2.0  # seconds for which input after the last answer is discarded


class _State(Enum):
    HEAD = auto()
    SERVING = auto()
    FLUSHING = auto()
    LINGERING = auto()
    CLOSED = auto()


class CallerConnection(asyncio.Protocol):
    """The protocol of one connection; `listener` has the limits and the handler.

    `place` is set if the connection was already counted, before its TLS handshake.
    """

    __slots__ = (
        "_deadline",
        "_early",
        "_heads",
        "_listener",
        "_loop",
        "_peer",
        "_place",
        "_request",
        "_state",
        "outflow",
        "socket",
        "task",
        "transport",
    )

    def __init__(self, listener: "Listener", place: Place | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.task: asyncio.Task[None] | None = None
        self._listener = listener
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._state = _State.HEAD
        self._deadline = Deadline(self._loop)
        self._heads = HeadReader()
        self._request: Request | None = None

    @property
    def is_idle(self) -> bool:
        """True if no request is under way."""
        return self._state in {_State.HEAD, _State.LINGERING}

    @property
    def is_delivering(self) -> bool:
        """True while some of what is written has not left."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def is_counted(self) -> bool:
        """True if it has a place among the connections."""
        return self._place is not None

    @property
    def may_stay(self) -> bool:
        """True if another request may follow the one under way."""
        return not (self._early.is_dropping or self._listener.is_closing)

    def date(self) -> str:
        """Return the time, as a Date field has it."""
        return self._listener.date()

    def begin_answer(self) -> int:
        """Note that an answer leaves, and return for how long the connection stays open after it.

        From now on the caller must take some of it at least every `write_timeout` seconds.
        """
        self.socket.bound_silence(self._listener.write_timeout)
        return int(self._listener.limits.header_timeout)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        self._peer = _address(transport)
        if self._place is None:
            descriptor = transport.get_extra_info("socket").fileno()
            self._place = self._listener.take(self._peer, descriptor)
        if self._place is None:
            self._state = _State.CLOSED
            transport.abort()
            return
        self.transport = transport
        self.outflow = Outflow(transport)
        self._early = EarlyBytes(self._listener.room, self._peer)
        self._listener.admit(self)
        self.socket = PeerSocket(transport)
        self._await_head()

    def connection_lost(self, _: BaseException | None) -> None:
        if self.transport is None:  # it was refused
            return
        self.transport = None
        self._state = _State.CLOSED
        self._early.drop()
        self._deadline.stop()
        if self.task is not None:
            self.task.cancel()
        if self._request is not None and self._request.body is not None:
            self._request.body.drop()
        self._request = None  # it refers to this connection, and nothing looks for such circles
        self.outflow.lose()
        self.socket.lose()
        if self._place is not None:
            self._place.give_back()
        self._listener.forget(self)

    def data_received(self, data: bytes) -> None:
        match self._state:
            case _State.HEAD:
                self._read_head(data)
            case _State.SERVING | _State.FLUSHING:
                self._receive(data)
            case _State.LINGERING | _State.CLOSED:
                pass  # discarded

    def pause_writing(self) -> None:
        self.outflow.is_full = True

    def resume_writing(self) -> None:
        self.outflow.resume()
        if self._state is _State.FLUSHING:
            self._next()

    def close(self) -> None:
        """End the connection if no request is under way, else with the answer."""
        if self.task is None and self.transport is not None:
            self._state = _State.CLOSED
            self.transport.close()

    def give_way(self) -> None:
        """End the connection at once and stop counting it, since another one takes its place."""
        self._state = _State.CLOSED
        if self._place is not None:
            self._place.give_back()
            self._place = None
        if self.transport is not None:
            self.transport.abort()

    # Heads

    def _await_head(self) -> None:
        self._state = _State.HEAD
        self._deadline.expect_within(self._listener.limits.header_timeout, self.close)

    def _read_head(self, data: bytes) -> None:
        read = self._heads.feed(data, self._listener.limits.max_header)
        if isinstance(read, Problem):
            self._refuse(read)
        elif read is not None:
            message, behind = read
            self._serve(Request(message, self, self._peer), behind)

    def _refuse(self, problem: Problem) -> None:
        """Answer a head that is no request, and read no other."""
        assert self.transport is not None  # noqa: S101 -- for the type checker
        self.transport.write(self._listener.refusal(problem, secrets.token_hex(16)))
        self._linger()

    # Requests

    def _serve(self, request: Request, behind: bytes) -> None:
        self._state = _State.SERVING
        self._deadline.clear()
        self.socket.bound_silence(VANISHED)
        self._request = request
        headers = request.headers
        if "Transfer-Encoding" in headers:
            if request.is_chunked:
                request.body = IncomingBody(self._listener.room, self._peer, None)
            else:  # its end is not known; the handler refuses it
                self._early.is_dropping = True
        elif length := content_length(headers.get("Content-Length", "0")):
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
            is_at_end = request.is_whole and not (self._early or self._early.is_paused)
            if (is_at_end and not self._early.is_dropping) or request.is_late:
                self._state = _State.CLOSED
                transport.close()
            else:
                self._linger()
        elif self._listener.is_closing:
            self._state = _State.CLOSED
            transport.close()
        elif self.outflow.is_full:
            self._state = _State.FLUSHING
        else:
            self._next()

    def _next(self) -> None:
        self._request = None
        self._await_head()
        if self._early:
            self._read_head(self._early.take(self.transport))

    def _receive(self, data: bytes) -> None:
        """Add bytes to the body, and keep those behind it for their turn."""
        request = self._request
        if request is not None and request.body is not None and not request.body.is_complete:
            data = request.body.feed(data)
        if data:
            self._early.keep(data, self.transport)

    def _linger(self) -> None:
        assert self.transport is not None  # noqa: S101 -- for the type checker
        self._state = _State.LINGERING
        self._early.take(self.transport)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline.stop()
        self._deadline.expect_within(_LINGERING, self.close)


def _address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""
