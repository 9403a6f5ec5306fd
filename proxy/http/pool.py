"""The connections to one server, as some settings say to reach it.

Private names of the library's connector that are used here: `_factory` (connections of our own
class), `_acquired` and `_conns` (to count and to abort them), `_release_waiter` (to wake the next).
"""

import asyncio
import functools
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from yarl import URL

from proxy.http.connection import UpstreamProtocol
from proxy.http.tls import verifying_context
from proxy.settings import Upstream as UpstreamSettings

_DNS_SECONDS: Final = 10  # an address that changed is noticed after this long


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
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
    def of(cls, settings: UpstreamSettings, base: URL) -> "Destination":
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
        factory: Any = functools.partial(UpstreamProtocol, loop=loop)
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
        """Wake the next request that waits for a connection.

        The library does not, where it woke one that was cancelled in the same step.
        """
        if not self.pool.closed:
            self.pool._release_waiter()  # noqa: SLF001 -- not public

    async def close(self) -> None:
        """Abort all connections, and wait for none of them."""
        for protocol in (*self.active(), *self.idle()):
            protocol.abort()
        await self.pool.close()


def _forward_proxy(settings: UpstreamSettings) -> tuple[URL | None, dict[str, str]]:
    """Return the outgoing proxy's URL and what authenticates us to it (RFC 7617)."""
    if settings.proxy_url is None:
        return None, {}
    url = URL(settings.proxy_url.get_secret_value())
    if url.user is None:
        return url, {}
    credentials = aiohttp.encode_basic_auth(url.user, url.password or "")
    return url.with_user(None), {"Proxy-Authorization": credentials}
