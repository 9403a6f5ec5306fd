"""The connections to one server, for one set of settings.

Theory of operation. A permit stands for one connection in use; there are `max_connections`
(permits.py). With a permit a request takes the most recently used idle connection if it is usable,
or opens a new one.

Invariants:
- Permits handed out, and connections that are idle, are `max_connections` together at most.
- A connection is in use, or idle, or closed; one that is given back in mid-message is aborted.
- An idle connection is closed after `idle_timeout`; those of a retired pool are closed at once.
"""

import asyncio
import socket
import ssl
from collections import deque
from typing import Final

import aiohttp
from aiohappyeyeballs import start_connection
from aiohttp.http import HttpProcessingError
from yarl import URL

from proxy.deadlines import time_limit
from proxy.http.addresses import Addresses
from proxy.http.connection import Connection
from proxy.http.messages import Unsent
from proxy.http.permits import Permits
from proxy.http.reading import Limits
from proxy.http.tls import verifying_context
from proxy.settings import Upstream as UpstreamSettings

_NEXT_ADDRESS: Final = 0.25  # seconds until another address is tried as well (RFC 8305 section 5)
_CLOSE_SECONDS: Final = 2.0  # for the end of TLS on a connection that is at the end of a message


class Pool:
    """Opens, keeps and closes the connections to the server of `origin`."""

    def __init__(self, settings: UpstreamSettings, origin: URL, *, max_header: int) -> None:
        self.settings = settings
        self.origin = origin
        self.max_header = max_header
        self.host = origin.host_port_subcomponent or ""
        self._limits = Limits.of(settings.response_timeout, max_header)
        self._forward, self.forward_fields = _forward_proxy(settings)
        # A forward proxy reads requests itself if there is no tunnel, as for http.
        self.asks_forward_proxy = self._forward is not None and origin.scheme == "http"
        way = self._forward or origin
        self._addresses = Addresses((way.raw_host or "").rstrip("."), way.port or 0)
        secure = "https" in (origin.scheme, way.scheme)
        self._tls = verifying_context(settings.ca_file) if secure else None
        self._permits = Permits()
        self._deadlines: set[asyncio.Timeout] = set()  # of all waits and connects
        self._active: set[Connection] = set()
        self._idle: deque[Connection] = deque()  # the one used last is the last
        self._sweep: asyncio.TimerHandle | None = None
        self._is_retired = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Pool {len(self._active)} active, {len(self._idle)} idle, {self._permits}>"

    @property
    def is_empty(self) -> bool:
        """True if nothing is under way."""
        return not (self._permits.taken or self._idle)

    def counts(self) -> tuple[int, int]:
        """Return how many connections are active and how many idle."""
        return len(self._active), len(self._idle)

    def take_idle(self) -> Connection | None:
        """Return a connection that can be written to at once; None if there is none."""
        if self._is_closed or not self._permits.take_free(self.settings.max_connections):
            return None
        connection = self._usable()
        if connection is None:
            self._permits.give_back()
        else:
            self._active.add(connection)
        return connection

    async def take(self, *, is_new: bool = False) -> Connection:
        """Return a connection that can be written to, on request a new one; raises `Unsent`.

        The wait for a permit counts in `connect_timeout`.
        """
        try:
            async with time_limit(self.settings.connect_timeout) as deadline:
                self._deadlines.add(deadline)
                try:
                    if self._is_closed:
                        raise TimeoutError
                    await self._permits.take(self.settings.max_connections)
                    try:
                        connection = (None if is_new else self._usable()) or await self._open()
                    except BaseException:
                        self._permits.give_back()
                        raise
                finally:
                    self._deadlines.discard(deadline)
        except (OSError, HttpProcessingError) as error:
            raise Unsent("given up" if self._is_closed else _reason(error)) from None
        if self._is_closed:  # just as the connection was made
            self._permits.give_back()
            connection.abort(ConnectionAbortedError("given up"))
            raise Unsent("given up")
        self._active.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, or close it if it is not at a message's end."""
        if connection not in self._active:
            return
        self._active.remove(connection)
        is_wanted = self.settings.idle_timeout and (
            self._permits.has_waiters or not self._is_retired
        )
        if is_wanted and connection.is_reusable():
            connection.rest()
            self._keep(connection)
        else:
            connection.close()
        self._permits.give_back()

    def discard(self, connection: Connection) -> None:
        """Break off a connection whose answer was unusable."""
        self._active.remove(connection)
        connection.abort(ConnectionAbortedError("its answer was unusable"))
        self._permits.give_back()

    def drop_idle(self) -> None:
        """Close the connections that nothing uses."""
        while self._idle:
            self._idle.pop().close()

    def retire(self) -> None:
        """Close connections instead of keeping them; requests under way go on."""
        self._is_retired = True
        self.drop_idle()

    async def close(self) -> None:
        """Break off all connections and end all waits, whatever the server does."""
        self._is_closed = self._is_retired = True
        now = asyncio.get_running_loop().time()
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(now)
        for connection in (*self._active, *self._idle):
            connection.abort(ConnectionAbortedError("given up"))
        self._idle.clear()
        if self._sweep is not None:
            self._sweep.cancel()
        await self._addresses.close()

    # Idle connections

    def _usable(self) -> Connection | None:
        """Take the most recently used idle connection that is usable; close unusable ones."""
        oldest = asyncio.get_running_loop().time() - self.settings.idle_timeout
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > oldest and connection.is_usable():
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(self.settings.idle_timeout, self._close_expired)

    def _close_expired(self) -> None:
        loop, seconds = asyncio.get_running_loop(), self.settings.idle_timeout
        self._sweep = None
        while self._idle and self._idle[0].idle_since + seconds <= loop.time():
            self._idle.popleft().close()
        if self._idle:
            due = self._idle[0].idle_since + seconds
            self._sweep = loop.call_at(due, self._close_expired)

    def _forget(self, connection: Connection) -> None:
        """Drop an idle connection that was lost."""
        if connection in self._idle:
            self._idle.remove(connection)

    # New connections

    async def _open(self) -> Connection:
        """Connect, through the forward proxy if there is one."""
        while self._idle and self._permits.taken + len(self._idle) > self.settings.max_connections:
            self._idle.popleft().close()
        connection = await self._connect()
        if self._forward is not None and not self.asks_forward_proxy:
            connection = await self._tunnel(connection)
        if not connection.is_usable():
            connection.abort(ConnectionAbortedError("of no use"))
            raise Unsent("closed as soon as it was open")
        connection.on_lost = self._forget
        return connection

    async def _connect(self) -> Connection:
        """Connect to the server, or to the forward proxy, at the first address that answers."""
        way = self._forward or self.origin
        reached: socket.socket = await start_connection(
            await self._addresses.get(), happy_eyeballs_delay=_NEXT_ADDRESS
        )
        is_secure = way.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._limits),
            sock=reached,
            ssl=self._tls if is_secure else None,
            server_hostname=_certified_name(way) if is_secure else None,
            ssl_shutdown_timeout=_CLOSE_SECONDS if is_secure else None,
        )
        return connection

    async def _tunnel(self, outer: Connection) -> Connection:
        """Let the forward proxy open a tunnel (RFC 9110 section 9.3.6); TLS begins in it."""
        host = f"{self.origin.host_subcomponent}:{self.origin.port}"
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.forward_fields)
        try:
            outer.ask(
                f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode(), has_body=False
            )
            message, _ = await outer.answer()
        except BaseException:
            outer.abort(ConnectionAbortedError("of no use"))
            raise
        if not 200 <= message.code <= 299:  # noqa: PLR2004 -- as RFC 9110 says
            outer.abort(ConnectionAbortedError("of no use"))
            raise Unsent(f"the forward proxy answered {message.code}")
        transport = outer.detach()
        if transport is None or self._tls is None:
            raise ConnectionResetError("the tunnel was closed")
        inner = Connection(self._limits)
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                inner,
                self._tls,
                server_hostname=_certified_name(self.origin),
                ssl_shutdown_timeout=_CLOSE_SECONDS,
            )
        except BaseException:
            transport.abort()
            raise
        if secured is None:
            raise ConnectionResetError("the tunnel was closed")
        inner.connection_made(secured)
        return inner


def _certified_name(url: URL) -> str:
    """Return the name that the certificate must be for; it never ends in a dot."""
    return (url.raw_host or "").rstrip(".")


def _forward_proxy(settings: UpstreamSettings) -> tuple[URL | None, list[tuple[str, str]]]:
    """Return the outgoing proxy's URL, and the fields that authenticate us to it (RFC 7617)."""
    if settings.proxy_url is None:
        return None, []
    url = URL(settings.proxy_url.get_secret_value())
    if url.user is None:
        return url, []
    credentials = aiohttp.encode_basic_auth(url.user, url.password or "")
    return url.with_user(None), [("Proxy-Authorization", credentials)]


_REASONS: Final = (  # the first that fits
    (TimeoutError, "no connection in time"),
    (socket.gaierror, "the name of the server has no address"),
    (ssl.SSLCertVerificationError, "the certificate of the server is not trusted"),
    (ssl.SSLError, "TLS with the server failed"),
    (ConnectionRefusedError, "the server refuses connections"),
    (HttpProcessingError, "the forward proxy does not answer in HTTP"),
)


def _reason(error: BaseException) -> str:
    """Return why there is no connection, in words that quote no peer."""
    fitting = (words for kind, words in _REASONS if isinstance(error, kind))
    return next(fitting, "the server cannot be reached")
