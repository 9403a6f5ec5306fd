"""The address of the store: from its URL, or from the sentinels, which know the primary.

Commands go over our own `Wire`. redis-py does the subscription and talks to the sentinels.
"""

import ssl
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from proxy.rules.digests import STORE_PREFIX
from proxy.settings import Store

PREFIX: Final = STORE_PREFIX  # of every key and channel
CONNECT_SECONDS: Final = 2.0  # name, TCP, TLS, password and script: several round trips
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and how to log in there."""

    host: str
    port: int


class Client:
    """The store's servers, as the URL names them."""

    def __init__(self, settings: Store) -> None:
        url = settings.url.get_secret_value()
        parts, nodes = _split(url)
        self.username = unquote(parts.username or "") or None
        self._password = unquote(parts.password) if parts.password else None
        self.tls = ssl.create_default_context() if parts.scheme == "rediss" else None
        options: dict[str, Any] = {
            "protocol": 2,
            "socket_timeout": None,  # Connection bounds what it does, connecting included
            "socket_connect_timeout": None,
            "retry": Retry(NoBackoff(), 0),
        }
        self._service: str | None = None
        self.sentinels: list[Redis] = []
        if parts.scheme == "redis+sentinel":
            self._service, _, database = parts.path.strip("/").partition("/")
            self._sentinel = _sentinel(nodes, options)
            self.sentinels = self._sentinel.sentinels
            if self._password is not None:
                options |= {"username": self.username, "password": self._password}
            self.database = int(database or 0)
            self.redis: Redis = self._sentinel.master_for(
                self._service, db=self.database, **options
            )
        else:
            self.database = int(parts.path.strip("/") or 0)
            self.redis = Redis.from_url(url, **options)
            self._address = Address(parts.hostname or "", parts.port or _PORT)

    def __repr__(self) -> str:
        return f"<Client of {self._service or self._address}>"

    async def address(self) -> Address:
        """Return where the primary is now. Raises what redis-py raises."""
        if self._service is None:
            return self._address
        return Address(*await self._sentinel.discover_master(self._service))

    def credentials(self) -> tuple[str, ...] | None:
        """Return the arguments of AUTH, None if the URL names no password."""
        if self._password is None:
            return None
        return (self._password,) if self.username is None else (self.username, self._password)


def _split(url: str) -> tuple[SplitResult, list[SplitResult]]:
    """Return the parts of the URL with its first node only, and each of its nodes.

    A URL has one host (RFC 3986 section 3.2.2): `urlsplit` refuses a list with an IPv6 address.
    """
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    userinfo, at, hosts = place.rpartition("@")
    nodes = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return urlsplit(f"{scheme}://{userinfo}{at}{nodes[0].netloc}{slash}{path}"), nodes


def _sentinel(nodes: list[SplitResult], options: dict[str, Any]) -> Sentinel:
    # A sentinel that does not answer leaves time to ask the others, and then the store.
    share = CONNECT_SECONDS / (len(nodes) + 1)
    return Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        [(node.hostname, node.port or _SENTINEL_PORT) for node in nodes],
        sentinel_kwargs={**options, "socket_timeout": share, "socket_connect_timeout": share},
    )
