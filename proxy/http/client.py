"""The HTTP client towards the API: sends a request at most once, and knows when it left.

Of the HTTP library it uses the pool of connections and the parser of answers. The request is
written here: in one piece, so that nothing comes between looking whether the connection still
stands, writing, and stamping the send; and so that bytes pass unchanged: no path is quoted, no
redirect followed, no cookie kept, no body decoded, no field invented, nothing taken from the
environment.

Whatever goes wrong is one of three: `Unsent` (provably nothing left), `OutcomeUnknown` (it may have
been applied) or `BadAnswer` (answered, but not in HTTP). `Withheld` says that it was not to leave
any more when there was a connection. Errors of the library end here; they are never logged with
`repr`, which may show the Authorization header.

A pooled connection is not used if it is idle longer than `idle_timeout`, closed by the peer, or has
something to be read, which would be taken for the answer. Nothing is sent twice here.
"""

import asyncio
import functools
import select
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import HttpVersion11
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.clock import Clock
from proxy.rules.headers import Field, is_writable, response_fields, wire_fields
from proxy.settings import Upstream as UpstreamSettings

_DNS_SECONDS: Final = 10  # an address that changed is noticed after this long
_MAX_FIELD: Final = 8190  # bytes of a line of an answer's head, of which there may be 128
_PROXY_WANTS_CREDENTIALS: Final = 407
_POLL_CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
_FOREIGN: Final = (aiohttp.ClientError, TimeoutError, OSError)  # what the library raises
_FOREIGN_IN_BODY: Final = (*_FOREIGN, HttpProcessingError)
_WITHOUT_LENGTH: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # where no body is the rule


class Unsent(Exception):
    """The request provably never left: DNS, connect or TLS failed, or no connection was free."""


class Withheld(Exception):
    """The request did not leave: when there was a connection it was no longer allowed to."""


class OutcomeUnknown(Exception):
    """The request was sent and no answer came; `timed_out` tells silence from a lost connection."""

    def __init__(self, *, timed_out: bool) -> None:
        super().__init__("no answer in time" if timed_out else "the connection was lost")
        self.timed_out = timed_out


class BadAnswer(Exception):
    """The answer is not HTTP, or has a status that must not be passed on."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it is to appear on the wire; `path` and `query` are raw."""

    method: str
    path: str
    query: str
    fields: list[Field]
    body: bytes

    @property
    def target(self) -> str:
        """The request target in origin-form."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read whole, bytes as they came."""

    status: int
    reason: str
    fields: list[Field]
    body: bytes


class _Protocol(ResponseHandler):
    """A connection that tells whoever reads a body when that breaks off.

    The library tells of a reset only where the body has a length, and of its own parser's refusal
    or a close from here not at all: the reader would wait for ever, or see a clean end.
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
        """Have whoever waits for the head of an answer learn that it did not come in time."""
        self.set_exception(aiohttp.SocketTimeoutError("no head in time"))

    def is_usable(self) -> bool:
        """Tell whether it stands, and what comes next on it can only be the answer.

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
        """Tell whether the body has come already, so that nobody need wait for it."""
        return self.content.is_eof() and self.content.exception() is None

    def keep(self, data: bytes) -> None:
        """Take back what was read of the body: it comes first when that is read again."""
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
        """Have that called once when the answer, not complete yet, is released."""
        self._on_release = callback

    def release(self) -> None:
        """Give the connection back, or close it if some of the body is still to come."""
        self._connection.release()
        callback, self._on_release = self._on_release, None
        if callback is not None:
            callback()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """A server as some settings say to reach it, and the pool of connections to it.

    The pool is asked for a connection with `destination`, a request that is never sent.
    """

    settings: UpstreamSettings
    base: URL
    host: str
    proxy: URL | None
    proxy_headers: dict[str, str]
    timeout: aiohttp.ClientTimeout
    pool: aiohttp.TCPConnector
    destination: ClientRequest

    @classmethod
    def of(cls, settings: UpstreamSettings, base: URL) -> "_Server":
        loop = asyncio.get_running_loop()
        host = base.host_port_subcomponent or ""
        proxy, proxy_headers = _forward_proxy(settings)
        pool = aiohttp.TCPConnector(
            limit=settings.max_connections,
            ttl_dns_cache=_DNS_SECONDS,
            ssl=verifying_context(settings.ca_file),
            **(
                {"keepalive_timeout": settings.idle_timeout}
                if settings.idle_timeout
                else {"force_close": True}
            ),
        )
        factory: Any = functools.partial(_Protocol, loop=loop)
        pool._factory = factory  # noqa: SLF001 -- there is no other way to say so
        return cls(
            settings=settings,
            base=base,
            host=host,
            proxy=proxy,
            proxy_headers=proxy_headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout),
            pool=pool,
            destination=ClientRequest(
                "GET",
                base,
                loop=loop,
                proxy=proxy,
                # With its Host, which the pool would add, and then take the key for another one.
                proxy_headers={"Host": host, **proxy_headers} if proxy else None,
            ),
        )

    @property
    def asks_forward_proxy(self) -> bool:
        """Whether a forward proxy reads the requests itself: there is no tunnel for http."""
        return self.proxy is not None and self.base.scheme == "http"

    def active(self) -> tuple[ResponseHandler, ...]:
        """Return the connections in use."""
        return tuple(self.pool._acquired)  # noqa: SLF001 -- not public

    def idle(self) -> tuple[ResponseHandler, ...]:
        """Return the connections that wait for a use."""
        kept = self.pool._conns.values()  # noqa: SLF001 -- not public
        return tuple(protocol for connections in kept for protocol, _ in connections)

    def wake_another(self) -> None:
        """Have the next who waits for a connection look whether there is one.

        The library forgets to where it woke somebody who was cancelled in the same step.
        """
        if not self.pool.closed:
            self.pool._release_waiter()  # noqa: SLF001 -- not public

    async def close(self) -> None:
        """Break off all connections; none is waited for, whatever the server does."""
        for protocol in (*self.active(), *self.idle()):
            protocol.abort()
        await self.pool.close()


class Upstream:
    """One pool of connections to one server, that of the URL `base`."""

    def __init__(self, settings: UpstreamSettings, base: str, *, clock: Clock) -> None:
        self._clock = clock
        self._is_given_up = False
        self._retired: list[_Server] = []
        self._server = _Server.of(settings, URL(base).origin())

    def apply(self, settings: UpstreamSettings, base: str) -> None:
        """Use new settings from now on; what is under way goes on as it began.

        The retired pool's idle connections close by themselves.
        """
        server, origin = self._server, URL(base).origin()
        if (settings, origin) != (server.settings, server.base):
            self._retired = [
                retired
                for retired in (*self._retired, server)
                if retired.active() or retired.idle()
            ]
            self._server = _Server.of(settings, origin)

    async def give_up(self) -> None:
        """Break off whatever is still unanswered; whoever waits for it learns it timed out."""
        self._is_given_up = True
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for server in (self._server, *self._retired):
            await server.close()

    def connections(self) -> tuple[int, int]:
        """Return how many connections are active and how many idle."""
        return len(self._server.active()), len(self._server.idle())

    async def send(
        self,
        request: Outgoing,
        *,
        may_leave: Callable[[], bool] = lambda: True,
        on_sent: Callable[[float], None] = lambda _: None,
    ) -> Response:
        """Send once and return the answer with its body still to be read.

        `may_leave` is asked when there is a connection, immediately before the request is written:
        to connect takes time. If it says no, `Withheld` is raised. `on_sent` is called exactly when
        something may have left, with the monotonic time at which all of it was written.

        Raises `Unsent`, `Withheld`, `OutcomeUnknown` or `BadAnswer`.
        """
        server = self._server  # a reload while it connects is for those who come later
        connection, protocol = await self._connect(server)
        if not may_leave():
            connection.release()
            raise Withheld
        try:
            await _write(request, protocol, server)
        except BaseException as error:
            connection.close()
            if isinstance(error, _FOREIGN):
                raise Unsent(_reason(error)) from None
            raise
        deadline = asyncio.get_running_loop().call_later(
            server.settings.response_timeout, protocol.time_out
        )
        try:
            on_sent(self._clock.monotonic())
            message, content = await _final_answer(protocol)
            _check(message, server)
        except BaseException as error:
            connection.close()
            if isinstance(error, HttpProcessingError):
                raise BadAnswer("the answer is not HTTP") from None
            if isinstance(error, _FOREIGN):
                raise self._lost(error) from None
            raise
        finally:
            deadline.cancel()
        return Response(connection, message, content)

    async def read(self, answer: Response, limit: int) -> Answer:
        """Read an answer whole; one longer than `limit` bytes raises `BadAnswer`.

        Raises `OutcomeUnknown` if it breaks off.
        """
        whole = await self.read_short(answer, limit)
        if whole is None:
            answer.release()
            raise BadAnswer("longer than can be kept")
        return whole

    async def read_short(self, answer: Response, limit: int) -> Answer | None:
        """Read an answer whole; None for one longer than `limit` bytes, still all to be read.

        Raises `OutcomeUnknown` if it breaks off.
        """
        body = bytearray()
        while chunk := await self.next_chunk(answer):
            body += chunk
            if len(body) > limit:
                answer.keep(bytes(body))
                return None
        return Answer(answer.status, *answer.head(), bytes(body))

    async def next_chunk(self, answer: Response) -> bytes:
        """Return what comes next of the body, nothing at its end.

        Raises `OutcomeUnknown` if it breaks off. Whoever stops before the end releases the answer.
        """
        try:
            return await answer.read_any()
        except BaseException as error:
            answer.release()
            if isinstance(error, _FOREIGN_IN_BODY):
                raise self._lost(error) from None
            raise

    def _lost(self, error: BaseException) -> OutcomeUnknown:
        return OutcomeUnknown(timed_out=self._is_given_up or isinstance(error, TimeoutError))

    async def _connect(self, server: _Server) -> tuple[Connection, _Protocol]:
        """Return a connection that can be written to; raises `Unsent`.

        Each pooled one that is of no use is closed; after the last of them comes a fresh one.
        """
        while not server.pool.closed:
            try:
                connection = await server.pool.connect(server.destination, [], server.timeout)
            except _FOREIGN as error:
                server.wake_another()
                raise Unsent(_reason(error)) from None
            except asyncio.CancelledError:
                server.wake_another()
                task = asyncio.current_task()
                if server.pool.closed and task is not None and not task.cancelling():
                    break  # not we are cancelled but our wait, which the pool's end has ended
                raise
            protocol = connection.protocol
            assert isinstance(protocol, _Protocol)  # noqa: S101 -- for the type checker
            if protocol.is_usable():
                protocol.is_fresh = False
                return connection, protocol
            connection.close()
            if protocol.is_fresh:
                raise Unsent("closed as soon as it was open")
        raise Unsent("given up")


async def _write(request: Outgoing, protocol: ResponseHandler, server: _Server) -> None:
    """Hand the whole request to the transport; nothing in here waits."""
    protocol.set_response_params(
        skip_payload=request.method == "HEAD",
        read_until_eof=True,
        auto_decompress=False,
        read_timeout=server.settings.response_timeout,
        max_line_size=_MAX_FIELD,
        max_field_size=_MAX_FIELD,
    )
    headers = CIMultiDict([("Host", server.host)])
    if request.body or request.method not in _WITHOUT_LENGTH:
        headers["Content-Length"] = str(len(request.body))
    if not server.settings.idle_timeout:
        headers["Connection"] = "close"
    headers.extend(request.fields)
    target = request.target
    if server.asks_forward_proxy:
        target = f"{server.base}{target}"
        headers.extend(server.proxy_headers)
    writer = StreamWriter(protocol, asyncio.get_running_loop())
    await writer.write_headers(f"{request.method} {target} HTTP/1.1", headers)
    if request.body:
        await writer.write(request.body, drain=False)
    else:
        writer.send_headers()


def _check(message: RawResponseMessage, server: _Server) -> None:
    """Refuse an answer that must not be passed on."""
    if server.asks_forward_proxy and message.code == _PROXY_WANTS_CREDENTIALS:
        raise Unsent("the forward proxy wants other credentials")
    if not 200 <= message.code <= 599:  # noqa: PLR2004 -- RFC 9110 section 15
        raise BadAnswer("a status nobody asked for")
    if message.version != HttpVersion11 and "Transfer-Encoding" in message.headers:
        raise BadAnswer("chunks before HTTP/1.1")  # RFC 9112 section 6.1


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the forward proxy answered {error.status}"
    return type(error).__name__


async def _final_answer(protocol: ResponseHandler) -> tuple[RawResponseMessage, StreamReader]:
    """Return head and body of the answer; interim ones (RFC 9110 section 15.2) are for nobody."""
    while True:
        message, content = await protocol.read()
        if not 100 <= message.code <= 199 or message.code == 101:  # noqa: PLR2004 -- as named
            return message, content


def _forward_proxy(settings: UpstreamSettings) -> tuple[URL | None, dict[str, str]]:
    """Return the outgoing proxy's URL and what authenticates us to it (RFC 7617)."""
    if settings.proxy_url is None:
        return None, {}
    url = URL(settings.proxy_url.get_secret_value())
    if url.user is None:
        return url, {}
    credentials = aiohttp.encode_basic_auth(url.user, url.password or "")
    return url.with_user(None), {"Proxy-Authorization": credentials}


def is_closed_by_peer(transport: asyncio.BaseTransport | None) -> bool:
    """Tell whether the other side has closed, even if the event loop has not noticed yet."""
    return _is_any_of(_POLL_CLOSED, transport)


def _is_any_of(events: int, transport: asyncio.BaseTransport | None) -> bool:
    """Tell whether any of these events of poll(2) has come, or the transport is closing."""
    if transport is None or transport.is_closing():
        return True
    socket = transport.get_extra_info("socket")
    poll = select.poll()
    poll.register(socket.fileno(), events)
    return bool(poll.poll(0))


def verifying_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that verifies, against `ca_file` or the system's authorities.

    Raises OSError (of which ssl.SSLError is one) if the file cannot be used.

    Nothing of it comes from the environment: SSL_CERT_FILE and SSL_CERT_DIR would replace the
    authorities, and SSLKEYLOGFILE have the session keys written down, if the `ssl` module's
    default context were used.
    """
    return _system_context() if ca_file is None else _context(ca_file)


@functools.cache
def _system_context() -> ssl.SSLContext:
    """Return the context of the authorities OpenSSL was built to find; reading them takes a while.

    Which of file and folder is filled depends on the system.
    """
    paths = ssl.get_default_verify_paths()
    known = (Path(paths.openssl_cafile), Path(paths.openssl_capath))
    return _context(*(path for path in known if path.exists()))


def _context(*authorities: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in authorities:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    return context
