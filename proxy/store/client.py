"""The client of Redis (or Valkey, or a primary behind Sentinel), made from the store's URL."""

from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from proxy.settings import Store

PREFIX: Final = "export-proxy:"  # of every key and channel
COMMANDS: Final = 8  # at once; more would only wait for each other, and time out doing so
_SENTINEL_PORT: Final = 26379


def connect(settings: Store) -> "tuple[Redis, list[Redis]]":
    """Return the client of the store, and those of the sentinels that know where it is."""
    url = settings.url.get_secret_value()
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": None,  # Connection bounds the whole command, connecting included
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 2 * COMMANDS,  # some may be closing; one listens
    }
    if not url.startswith("redis+sentinel://"):
        return Redis.from_url(url, **options), []
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    nodes = [urlsplit(f"//{node}") for node in parts.netloc.rpartition("@")[2].split(",")]
    if parts.password:
        options |= {
            "username": unquote(parts.username or "") or None,
            "password": unquote(parts.password),
        }
    # A sentinel that does not answer leaves time to ask the others, and then the store.
    share = settings.timeout / (len(nodes) + 1)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        [(node.hostname, node.port or _SENTINEL_PORT) for node in nodes],
        sentinel_kwargs={
            "protocol": 2,
            "socket_timeout": share,
            "socket_connect_timeout": share,
            "retry": Retry(NoBackoff(), 0),
        },
        **options,
    )
    primary: Redis = sentinel.master_for(service, db=int(database or 0))
    return primary, sentinel.sentinels
