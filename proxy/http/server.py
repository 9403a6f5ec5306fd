"""The HTTP server of the admin port: aiohttp's, with our limits and our answers.

Its parser's refusals become problems, without the offending line (it may hold a token) in body or
log. If the caller leaves, its handler is cancelled. Bodies are not decompressed. Connections are
capped: the oldest that asks nothing makes room for one too many. One that is too slow, in sending a
head or in taking an answer, is closed unanswered.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from proxy.http.responses import problem_response
from proxy.http.sockets import bound_silence, open_port
from proxy.problems import Problem
from proxy.settings import Limits

_log = structlog.get_logger(__name__)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_LINGERING: Final = 2.0  # seconds in which a refused body is still read, so that the answer arrives


class Server(web.Server):
    """Makes a connection handler for each connection.

    `write_timeout` is for how many seconds a caller may take nothing of an answer.
    """

    def __init__(
        self,
        handle: Handle,
        limits: Limits,
        *,
        write_timeout: float = 60.0,
        request_factory: Callable[..., web.BaseRequest] | None = None,
    ) -> None:
        super().__init__(
            handle,
            request_factory=request_factory,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            lingering_time=_LINGERING,
        )
        self.apply(limits, write_timeout=write_timeout)

    def apply(self, limits: Limits, *, write_timeout: float) -> None:
        """Obey new limits from the next connection on."""
        self.limits = limits
        self.write_timeout = write_timeout

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(
            self,
            loop=self._loop,
            keepalive_timeout=self.limits.header_timeout,
            max_line_size=self.limits.max_header,
            max_field_size=self.limits.max_header,
            **self._kwargs,
        )

    def make_room(self) -> None:
        """Abort a connection if there are too many: the oldest that asks nothing, else the oldest.

        So the newest is always served, and nobody can keep operators out by holding connections.
        """
        held = [one for one in self._connections if isinstance(one, _Connection) and one.is_open]
        if len(held) >= self.limits.max_connections:
            idle = [one for one in held if one.is_idle]
            (idle or held)[0].give_way()


class _Connection(web.RequestHandler):
    __slots__ = ("_head_size", "_server")

    if TYPE_CHECKING:
        _head_size: int
        _server: Server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(self._manager, Server)  # noqa: S101 -- for the type checker
        self._server = self._manager
        self._head_size = 0
        bound_silence(transport, self._server.write_timeout)
        self._server.make_room()
        super().connection_made(transport)

    @property
    def is_open(self) -> bool:
        """True if it is not closing."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def is_idle(self) -> bool:
        """True if no request of it is under way."""
        return self._waiter is not None and not self._waiter.done()

    def give_way(self) -> None:
        """End it for another one."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse a head as soon as it is too large: the library keeps 128 fields."""
        super().data_received(data)
        waiter = self._waiter  # there is one, and it is pending, while the next head is awaited
        if waiter is None or waiter.done():
            self._head_size = 0
            return
        self._head_size += len(data)
        if self._head_size > self._server.limits.max_header:
            error = _ErrInfo(HTTPStatus.BAD_REQUEST, LineTooLong(b"", 0), "")
            self._messages.append((error, EMPTY_PAYLOAD))
            waiter.set_result(None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Answer; for the rest of a body that had its time nobody waits."""
        if resp.status == HTTPStatus.REQUEST_TIMEOUT:
            self._lingering_time = 0.0
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 -- quotes the caller
    ) -> web.StreamResponse:
        """Answer what never reached a handler, or escaped from one."""
        if request.writer.output_size > 0:
            raise ConnectionError  # half an answer is out; closing is all that is left
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("a request failed outside its handler", exc_info=exc)
            problem = Problem("internal", "The proxy failed; see its log.", close=True)
        elif isinstance(exc, LineTooLong):
            problem = Problem("too-large", "The head is too long.", status=431, close=True)
        else:
            problem = Problem("bad-request", "The request is not valid HTTP.", close=True)
        return problem_response(problem, secrets.token_hex(16))


class Site(web.TCPSite):
    """Listens, on IPv4 as well where the unspecified IPv6 address is asked for."""

    async def start(self) -> None:
        """Open the port."""
        await web.BaseSite.start(self)
        server = self._runner.server
        assert isinstance(server, Server)  # noqa: S101 -- for the type checker
        self._server = await open_port(
            server,
            self._host or "",
            self._port,
            backlog=self._backlog,
        )
