"""The HTTP client towards the API: sends a request at most once, and knows when it left.

Of the HTTP library it uses the pool of connections and the parser of answers. The request is
written here: in one piece, so that nothing comes between looking whether the connection still
stands, writing, and stamping the send; and so that bytes pass unchanged: no path is quoted, no
redirect followed, no cookie kept, no body decoded, no field invented, nothing taken from the
environment.

Whatever goes wrong is one of three: `Unsent` (provably nothing left), `OutcomeUnknown` (it may have
been applied) or `BadAnswer` (answered, but not in HTTP). Errors of the library end here; they are
never logged with `repr`, which may show the Authorization header.

A pooled connection that is idle longer than `idle_timeout`, or already closed by the peer, is not
used. Nothing is sent twice here.
"""

import asyncio
import functools
import select
import ssl
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import HttpVersion11
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.clock import Clock
from proxy.core.headers import Field, is_writable, response_fields, wire_fields
from proxy.settings import Upstream as UpstreamSettings

_STALE_TRIES: Final = 3  # pooled connections that turn out closed before a send is called unsent
_DNS_SECONDS: Final = 10  # an address that changed is noticed after this long
_MAX_FIELD: Final = 8190  # bytes of a line of an answer's head, of which there may be 128
_PROXY_WANTS_CREDENTIALS: Final = 407
_POLL_CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
_FOREIGN: Final = (aiohttp.ClientError, TimeoutError, OSError)  # what the library raises
_WITHOUT_LENGTH: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # where no body is the rule


class Unsent(Exception):
    """The request provably never left: DNS, connect or TLS failed, or no connection was free."""


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


class Response:
    """An answer whose head has come.

    Its connection goes back to the pool when the body has come, too; release one that is not read
    to its end, which closes the connection.
    """

    __slots__ = ("_connection", "_message", "content", "headers", "status")

    def __init__(
        self, connection: Connection, message: RawResponseMessage, content: StreamReader
    ) -> None:
        self.status = message.code
        self.headers: CIMultiDictProxy[str] = message.headers
        self.content = content
        self._message = message
        self._connection = connection
        content.on_eof(connection.release)

    @property
    def is_complete(self) -> bool:
        """Tell whether the body has come already, so that nobody need wait for it."""
        return self.content.is_eof()

    def head(self) -> tuple[str, list[Field]]:
        """Return the reason phrase and the end-to-end fields."""
        reason = self._message.reason or ""
        return (
            reason if is_writable(reason) else "",
            response_fields(
                wire_fields(self._message.raw_headers), self.headers.getall("Connection", ())
            ),
        )

    def release(self) -> None:
        """Give the connection back, or close it if some of the body is still to come."""
        self._connection.release()


class Upstream:
    """One pool of connections to one server, that of the URL `base`."""

    def __init__(self, settings: UpstreamSettings, base: str, *, clock: Clock) -> None:
        self._clock = clock
        self._is_given_up = False
        self._retired: list[aiohttp.BaseConnector] = []
        self._use(settings, base)

    def apply(self, settings: UpstreamSettings, base: str) -> None:
        """Use new settings from now on; what is under way goes on as it began.

        The retired pool's idle connections close by themselves.
        """
        if (settings, URL(base).origin()) != (self._settings, self._base):
            self._retired.append(self._pool)
            self._use(settings, base)

    async def give_up(self) -> None:
        """Break off whatever is still unanswered; whoever waits for it learns it timed out."""
        self._is_given_up = True
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for pool in (self._pool, *self._retired):
            await pool.close()

    def connections(self) -> tuple[int, int]:
        """Return how many connections are active and how many idle."""
        idle = sum(map(len, self._pool._conns.values()))  # noqa: SLF001 -- no public count
        return len(self._pool._acquired), idle  # noqa: SLF001

    def _use(self, settings: UpstreamSettings, base: str) -> None:
        self._settings = settings
        self._base = URL(base).origin()
        self._host = self._base.host_port_subcomponent or ""
        self._proxy, self._proxy_headers = _forward_proxy(settings)
        self._timeout = aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout)
        self._pool = aiohttp.TCPConnector(
            limit=settings.max_connections,
            ttl_dns_cache=_DNS_SECONDS,
            ssl=verifying_context(settings.ca_file),
            **(
                {"keepalive_timeout": settings.idle_timeout}
                if settings.idle_timeout
                else {"force_close": True}
            ),
        )
        # The pool is asked for a connection with a request of its own; it is never sent.
        self._destination = ClientRequest(
            "GET",
            self._base,
            loop=asyncio.get_running_loop(),
            proxy=self._proxy,
            # With its Host, which the pool would add, and then take the key for another one.
            proxy_headers={"Host": self._host, **self._proxy_headers} if self._proxy else None,
        )

    async def send(self, request: Outgoing, on_sent: Callable[[float], None]) -> Response:
        """Send once and return the answer with its body still to be read.

        Raises `Unsent`, `OutcomeUnknown` or `BadAnswer`. `on_sent` is called exactly when
        something may have left, with the monotonic time at which all of it was written.
        """
        if self._pool.closed:
            raise Unsent("given up")
        connection = None
        try:
            connection = await self._connect()
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101 -- for the type checker
            await self._write(request, protocol)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, _FOREIGN):
                raise Unsent(_reason(error)) from None
            raise
        try:
            on_sent(self._clock.monotonic())
            protocol.start_timeout()
            message, content = await _final_answer(protocol)
            self._check(message)
        except BaseException as error:
            connection.close()
            if isinstance(error, HttpProcessingError):
                raise BadAnswer("the answer is not HTTP") from None
            if isinstance(error, _FOREIGN):
                timed_out = self._is_given_up or isinstance(error, TimeoutError)
                raise OutcomeUnknown(timed_out=timed_out) from None
            raise
        return Response(connection, message, content)

    async def read(self, answer: Response, limit: int) -> Answer:
        """Read an answer whole; one longer than `limit` bytes raises `BadAnswer`.

        Raises `OutcomeUnknown` if it breaks off.
        """
        body = bytearray()
        async for chunk in self.chunks(answer):
            body += chunk
            if len(body) > limit:
                answer.release()
                raise BadAnswer("longer than can be kept")
        return Answer(answer.status, *answer.head(), bytes(body))

    async def chunks(self, answer: Response) -> AsyncGenerator[bytes]:
        """Yield the body as it comes; `OutcomeUnknown` when it breaks off."""
        try:
            async for chunk in answer.content.iter_any():
                yield chunk
        except _FOREIGN as error:
            raise OutcomeUnknown(timed_out=isinstance(error, TimeoutError)) from None
        finally:
            answer.release()

    async def _connect(self) -> Connection:
        for _ in range(_STALE_TRIES):
            connection = await self._pool.connect(self._destination, [], self._timeout)
            if not is_closed_by_peer(connection.transport):
                return connection
            connection.close()
        raise Unsent("every pooled connection was closed")

    async def _write(self, request: Outgoing, protocol: ResponseHandler) -> None:
        """Hand the whole request to the transport; nothing in here waits."""
        protocol.set_response_params(
            skip_payload=request.method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=self._settings.response_timeout,
            max_line_size=_MAX_FIELD,
            max_field_size=_MAX_FIELD,
        )
        headers = CIMultiDict([("Host", self._host)])
        if request.body or request.method not in _WITHOUT_LENGTH:
            headers["Content-Length"] = str(len(request.body))
        if not self._settings.idle_timeout:
            headers["Connection"] = "close"
        headers.extend(request.fields)
        target = request.target
        if self._asks_forward_proxy():
            target = f"{self._base}{target}"
            headers.extend(self._proxy_headers)
        writer = StreamWriter(protocol, asyncio.get_running_loop())
        await writer.write_headers(f"{request.method} {target} HTTP/1.1", headers)
        if request.body:
            await writer.write(request.body, drain=False)
        else:
            writer.send_headers()

    def _check(self, message: RawResponseMessage) -> None:
        """Refuse an answer that must not be passed on."""
        if self._asks_forward_proxy() and message.code == _PROXY_WANTS_CREDENTIALS:
            raise Unsent("the forward proxy wants other credentials")
        if not 200 <= message.code <= 599:  # noqa: PLR2004 -- RFC 9110 section 15
            raise BadAnswer("a status nobody asked for")
        if message.version != HttpVersion11 and "Transfer-Encoding" in message.headers:
            raise BadAnswer("chunks before HTTP/1.1")  # RFC 9112 section 6.1

    def _asks_forward_proxy(self) -> bool:
        """Tell whether a forward proxy reads the requests itself: there is no tunnel for http."""
        return self._proxy is not None and self._base.scheme == "http"


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
    if transport is None or transport.is_closing():
        return True
    socket = transport.get_extra_info("socket")
    poll = select.poll()
    poll.register(socket.fileno(), _POLL_CLOSED)
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
