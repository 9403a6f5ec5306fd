"""The connection to Redis (or Valkey, or a primary behind Sentinel), and its circuit breaker.

A command takes at most `timeout` and is never repeated: a reservation that timed out may still have
been made. The first failure opens the circuit, so that nobody waits for the next; a look every
`PROBE` seconds closes it again. Commands run in tasks of ours and not in those of callers, so that
a caller who goes away cannot leave a reply behind for the next command.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast
from urllib.parse import unquote, urlsplit

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from proxy.clock import Clock
from proxy.metrics import Metrics
from proxy.settings import Store

_log = structlog.get_logger(__name__)

PREFIX: Final = "export-proxy:"
PROBE: Final = 0.9  # seconds
_T = TypeVar("_T")


class StoreDown(Exception):
    """The store did not answer in time, or not sensibly."""


class Connection:
    """Talks to the store; calls `went_down` and `came_back` when it stops or begins to answer."""

    def __init__(self, settings: Store, *, clock: Clock, metrics: Metrics) -> None:
        self.settings = settings
        self.redis = _connect(settings)
        self.is_up = True
        self.went_down: list[Callable[[], None]] = []
        self.came_back: list[Callable[[], None]] = []
        self._clock = clock
        self._metrics = metrics
        metrics.store_is(up=True)

    async def call(self, command: Callable[[], Awaitable[_T]]) -> _T:
        """Run a command. Raises StoreDown if it fails, or at once while the circuit is open."""
        if not self.is_up:
            raise StoreDown
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await command()
        except (RedisError, OSError, TimeoutError) as error:
            self.fail(type(error).__name__)
            raise StoreDown from None

    def fail(self, reason: str) -> None:
        """Open the circuit."""
        if self.is_up:
            self.is_up = False
            self._metrics.store_is(up=False)
            _log.warning("the store is down", error=reason, on_failure=self.settings.on_failure)
            for tell in self.went_down:
                tell()

    async def run(self) -> None:
        """Look whether the store is back, until cancelled."""
        while True:
            await self._clock.sleep_until(self._clock.monotonic() + PROBE)
            if not self.is_up and await self._answers():
                self.is_up = True
                self._metrics.store_is(up=True)
                _log.info("the store is back")
                for tell in self.came_back:
                    tell()

    async def close(self) -> None:
        """Close all connections."""
        await self.redis.aclose()

    @asynccontextmanager
    async def news(self, *channels: str) -> AsyncIterator[PubSub]:
        """Subscribe to channels for as long as the context lasts."""
        async with self.redis.pubsub(ignore_subscribe_messages=True) as news:
            await news.subscribe(*channels)
            yield news

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self.settings.timeout):
                await cast("Awaitable[Any]", self.redis.ping())
        except (RedisError, OSError, TimeoutError):
            return False
        return True


def _connect(settings: Store) -> "Redis":
    url = settings.url.get_secret_value()
    options: dict[str, Any] = {
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.timeout,
        "retry": Retry(NoBackoff(), 0),
    }
    if not url.startswith("redis+sentinel://"):
        return Redis.from_url(url, **options)
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    if parts.password:
        options |= {
            "username": unquote(parts.username or "") or None,
            "password": unquote(parts.password),
        }
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        [(host.strip("[]"), int(port)) for host, _, port in hosts],
        sentinel_kwargs={key: options[key] for key in ("socket_timeout", "socket_connect_timeout")},
        **options,
    )
    master: Redis = sentinel.master_for(service, db=int(database or 0))
    return master
