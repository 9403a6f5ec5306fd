"""The HTTP client towards the API: sends a request at most once, and knows when it left.

- Bytes pass unchanged: the path is never re-quoted, redirects are not followed, cookies not kept,
  bodies not decompressed, no header invented, nothing taken from the environment.
- A send is stamped when its last byte has been handed to the transport. The library's own traces
  fire before the first one, so the stamp is taken in the request object itself.
- Whatever goes wrong is one of three: `Unsent` (provably nothing left), `OutcomeUnknown` (it may
  have been applied) or `BadAnswer` (answered, but not in HTTP). Errors of the library end here;
  they are never logged with `repr`, which would show the Authorization header.
- A pooled connection that is idle longer than `idle_timeout`, or already closed by the peer, is not
  used, and the library never gets to its own second try.
"""

import asyncio
import functools
import select
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import HttpVersion11
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from yarl import URL

from proxy.clock import Clock
from proxy.core.headers import Field, is_writable, response_fields, wire_fields
from proxy.settings import Upstream as UpstreamSettings

_STALE_TRIES: Final = 3  # pooled connections that turn out closed before a send is called unsent
_DNS_SECONDS: Final = 10  # an address that changed is noticed after this long
_MAX_FIELD: Final = 8190  # bytes of a line of an answer's head, of which there may be 128
_PROXY_WANTS_CREDENTIALS: Final = 407
_NOT_OURS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_POLL_CLOSED: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


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
    """A request as it is to appear on the wire; `target` is the raw path and query."""

    method: str
    path: str
    query: str
    fields: list[Field]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read whole, bytes as they came."""

    status: int
    reason: str
    fields: list[Field]
    body: bytes


class Departure:
    """When one try left: `on_sent` is called with the monotonic time its last byte was written."""

    __slots__ = ("_clock", "_on_sent", "started")

    def __init__(self, clock: Clock, on_sent: Callable[[float], None]) -> None:
        self._clock = clock
        self._on_sent = on_sent
        self.started = False

    def complete(self) -> None:
        """Stamp the send."""
        self._on_sent(self._clock.monotonic())


class Upstream:
    """One pool of connections to one server, that of the URL `base`."""

    def __init__(self, settings: UpstreamSettings, base: str, *, clock: Clock) -> None:
        self._clock = clock
        self._is_given_up = False
        self._retired: list[aiohttp.ClientSession] = []
        self._use(settings, base)

    def apply(self, settings: UpstreamSettings, base: str) -> None:
        """Use new settings from now on; what is under way goes on as it began.

        The retired pool's idle connections close by themselves.
        """
        if (settings, URL(base).origin()) != (self._settings, self._base):
            self._retired.append(self._session)
            self._use(settings, base)

    async def give_up(self) -> None:
        """Break off whatever is still unanswered; whoever waits for it learns it timed out."""
        self._is_given_up = True
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._session, *self._retired):
            await session.close()

    def connections(self) -> tuple[int, int]:
        """Return how many connections are active and how many idle."""
        connector = self._session.connector
        if connector is None:
            return 0, 0
        idle = sum(map(len, connector._conns.values()))  # noqa: SLF001 -- no public count
        return len(connector._acquired), idle  # noqa: SLF001

    def _use(self, settings: UpstreamSettings, base: str) -> None:
        self._settings = settings
        self._base = URL(base).origin()
        self._proxy, self._proxy_headers = _forward_proxy(settings)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.max_connections,
                ttl_dns_cache=_DNS_SECONDS,
                ssl=verifying_context(settings.ca_file),
                **(
                    {"keepalive_timeout": settings.idle_timeout}
                    if settings.idle_timeout
                    else {"force_close": True}
                ),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            request_class=_StampedRequest,
            skip_auto_headers=_NOT_OURS,
            max_line_size=_MAX_FIELD,
            max_field_size=_MAX_FIELD,
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=settings.connect_timeout,
                sock_read=settings.response_timeout,
            ),
        )

    async def send(
        self, request: Outgoing, on_sent: Callable[[float], None]
    ) -> aiohttp.ClientResponse:
        """Send once and return the answer with its body still to be read.

        Raises `Unsent`, `OutcomeUnknown` or `BadAnswer`. `on_sent` is called exactly when
        something may have left, also if this is cancelled.
        """
        for _ in range(_STALE_TRIES):
            departure = Departure(self._clock, on_sent)
            try:
                return await self._try(request, departure)
            except _StaleConnectionError:
                continue
            finally:
                if departure.started:
                    departure.complete()
        raise Unsent("every pooled connection was closed")

    async def read(self, answer: aiohttp.ClientResponse, limit: int) -> Answer:
        """Read an answer whole; one longer than `limit` bytes raises `BadAnswer`.

        Raises `OutcomeUnknown` if it breaks off.
        """
        body = bytearray()
        async for chunk in self.chunks(answer):
            body += chunk
            if len(body) > limit:
                answer.close()
                raise BadAnswer("longer than can be kept")
        return Answer(answer.status, *head_of(answer), bytes(body))

    async def chunks(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        """Yield the body as it comes; `OutcomeUnknown` when it breaks off."""
        try:
            async for chunk in answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise OutcomeUnknown(timed_out=isinstance(error, TimeoutError)) from None
        finally:
            answer.release()

    async def _try(self, request: Outgoing, departure: Departure) -> aiohttp.ClientResponse:
        url = URL.build(
            scheme=self._base.scheme,
            authority=self._base.authority,
            path=request.path,
            query_string=request.query,
            encoded=True,
        )

        async def attempt(
            client_request: ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            assert isinstance(client_request, _StampedRequest)  # noqa: S101 -- for the type checker
            client_request.departure = departure
            # The session would keep one of two names that differ in case alone.
            client_request.headers.extend(request.fields)
            if self._asks_forward_proxy():
                client_request.headers.extend(self._proxy_headers or {})
            with self._translated(departure):  # a foreign error would make the library send again
                return await handler(client_request)

        if self._session.closed:
            raise Unsent("given up")
        answer = await self._session.request(
            request.method,
            url,
            data=request.body or None,
            allow_redirects=False,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
            middlewares=(attempt,),
        )
        if self._asks_forward_proxy() and answer.status == _PROXY_WANTS_CREDENTIALS:
            answer.close()
            raise Unsent("the forward proxy wants other credentials")
        if not 200 <= answer.status <= 599:  # noqa: PLR2004 -- RFC 9110 section 15
            answer.close()
            raise BadAnswer("a status nobody asked for")
        if answer.version != HttpVersion11 and "Transfer-Encoding" in answer.headers:
            answer.close()
            raise BadAnswer("chunks before HTTP/1.1")  # RFC 9112 section 6.1
        return answer

    def _asks_forward_proxy(self) -> bool:
        """Tell whether a forward proxy reads the requests itself: there is no tunnel for http."""
        return self._proxy is not None and self._base.scheme == "http"

    @contextmanager
    def _translated(self, departure: Departure) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unsent(type(error).__name__) from None
        except aiohttp.ClientHttpProxyError as error:
            raise Unsent(f"the forward proxy answered {error.status}") from None
        except aiohttp.ClientResponseError:
            raise BadAnswer("the answer is not HTTP") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not departure.started:
                raise Unsent(type(error).__name__) from None
            timed_out = self._is_given_up or isinstance(error, TimeoutError)
            raise OutcomeUnknown(timed_out=timed_out) from None


class _StaleConnectionError(Exception):
    """The pooled connection was already closed by the peer; nothing was written to it."""


class _StampedRequest(ClientRequest):
    """A request that notes when it begins to leave and when it has left."""

    departure: Departure

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if is_closed_by_peer(conn.transport):
            raise _StaleConnectionError
        if self._body is not None or conn.protocol is None or conn.protocol.writing_paused:
            return await super().send(conn)  # goes on in write_bytes, as a task of its own
        self.departure.started = True
        response = await super().send(conn)
        self.departure.complete()
        return response

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None
    ) -> None:
        self.departure.started = True
        await super().write_bytes(writer, conn, content_length)
        self.departure.complete()


def head_of(answer: aiohttp.ClientResponse) -> tuple[str, list[Field]]:
    """Return the reason phrase and the end-to-end fields of an answer."""
    headers = answer.headers
    reason = answer.reason or ""
    return (
        reason if is_writable(reason) else "",
        response_fields(wire_fields(answer.raw_headers), headers.getall("Connection", ())),
    )


def _forward_proxy(settings: UpstreamSettings) -> tuple[URL | None, dict[str, str] | None]:
    """Return the outgoing proxy's URL and what authenticates us to it (RFC 7617)."""
    if settings.proxy_url is None:
        return None, None
    url = URL(settings.proxy_url.get_secret_value())
    if url.user is None:
        return url, None
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
