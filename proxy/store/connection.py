"""The connection to the store, and its circuit breaker.

A command has `timeout` seconds for its answer and is never repeated: one that timed out may still
have been carried out. The first failure opens the circuit, so no other command waits for a timeout.
Every `PROBE` seconds the connection checks whether the store is back, in all replicas at the same
moments of the wall clock, so that they return together. Connecting takes several round trips, and
has `CONNECT_SECONDS` of its own. The store is up while we are subscribed to it and it runs our
commands. Every `PROBE` seconds we read a mark in it: a new mark means that the store has lost its
state.

Invariants: a command does not run in the caller's task, so a cancelled caller leaves no reply
behind and costs no connection. While the store is down no command is sent. A command under way when
the store goes down is answered once, with StoreDown.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, Final, Protocol, cast

import structlog
from redis.asyncio.client import PubSub

from proxy.clock import Clock
from proxy.settings import Store
from proxy.store.client import CONNECT_SECONDS, PREFIX, Client
from proxy.store.edge import edge
from proxy.store.wire import Answered, Reply, StoreDown, Wire, Word, answer_of
from proxy.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

PROBE: Final = 1.0  # seconds
_QUIET: Final = 0.5  # seconds without a message after which the server is asked for a sign of life
_MARK: Final = PREFIX + "mark"
_MARK_SECONDS: Final = 86_400  # no less than anything else is kept, so that it is evicted last


class Subscriber(Protocol):
    """A part that receives messages of other replicas."""

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels to listen to."""
        ...

    def receive(self, text: str, since: float) -> None:
        """Act on a message that came after `since` (monotonic)."""
        ...

    async def self_test(self, wire: Wire) -> None:
        """Run the later commands once, to check that they work. Raises StoreDown."""
        ...


class Connection:
    """Talks to the store; calls `went_down` and `came_back` when it stops or begins to answer.

    `settled` is set once it is known whether the store answers. `restorers` are called when it
    comes back, and when it has lost its state; `heartbeats` when it comes back and once a second;
    `closing` before the connection is closed in order.
    """

    def __init__(
        self,
        settings: Store,
        *,
        clock: Clock,
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.settings = settings
        self.is_up = False
        self.settled = asyncio.Event()
        self.went_down: list[Callable[[], None]] = []
        self.came_back: list[Callable[[], None]] = []
        self.restorers: list[Callable[[], None]] = []
        self.heartbeats: list[Callable[[], None]] = []
        self.closing: list[Callable[[], None]] = []
        self.client = Client(settings)
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._is_closed = False
        self._mark: Reply = None
        self._wire: Wire | None = None

    def __repr__(self) -> str:
        return f"<Connection {'up' if self.is_up else 'down'}>"

    def apply(self, settings: Store) -> None:
        """Obey new settings from now on; the URL stays what it was."""
        self.settings = settings
        if not self.is_up:
            self._tell(self.went_down)  # waiters may have to be refused

    def send(self, words: tuple[Word, ...], answered: Answered) -> None:
        """Run a command and pass its answer on; StoreDown if it fails, or the store is down."""
        if self._wire is None or not self.is_up:
            answered(StoreDown("the store is down"))
        else:
            self._wire.send(words, answered)

    async def run(self, *words: Word) -> Reply:
        """Run a command. Raises StoreDown if it fails, or at once while the store is down."""
        try:
            return await answer_of(lambda answered: self.send(words, answered))
        except StoreDown as down:
            self.fail(down)
            raise

    def fail(self, down: StoreDown) -> None:
        """Open the circuit: the connection was lost, or an answer was unusable."""
        wire, self._wire = self._wire, None
        was_up, self.is_up = self.is_up, False
        if was_up or not (self.settled.is_set() or self._is_closed):
            self._metrics.servers.store_is(up=False)
            _log.warning("the store is down", error=str(down), on_failure=self.settings.on_failure)
            self._tell(self.went_down)
            self.settled.set()
        if wire is not None:
            wire.close(down)

    async def listen(self, *subscribers: Subscriber) -> None:
        """Receive messages, and check whether the store is back, until cancelled."""
        while True:
            try:
                async with self._subscribed(subscribers) as subscription:
                    self.is_up = True
                    self._metrics.servers.store_is(up=True)
                    _log.info("the store is up")
                    self._tell(self.came_back)
                    self._tell(self.restorers)
                    self._tell(self.heartbeats)
                    self.settled.set()
                    await self._listen(subscription, subscribers)
            except StoreDown as down:
                self.fail(down)
            # By the wall clock, which replicas have in common.
            pause = PROBE - self._clock.wall() % PROBE
            await self._clock.sleep_until(self._clock.monotonic() + pause)

    async def close(self) -> None:
        """Close all connections; from now on every command fails."""
        await self._say_goodbye()
        self._is_closed = True
        self.is_up = False
        self._tell(self.went_down)
        self.fail(StoreDown("the connection was closed"))
        for client in (self.client.redis, *self.client.sentinels):
            await self._close(client.aclose)

    async def _say_goodbye(self) -> None:
        """Give up leases that other replicas may want, also those about to come."""
        for _ in range(2):  # the first answers may bring a lease
            self._tell(self.closing)
            if self._wire is not None:
                with suppress(StoreDown):
                    await self._wire.run("PING")

    @asynccontextmanager
    async def _subscribed(self, subscribers: Iterable[Subscriber]) -> AsyncIterator[PubSub]:
        """Subscribe while the context lasts, if the store can run our commands."""
        subscription = self.client.redis.pubsub()
        channels = [channel for one in subscribers for channel in one.channels]
        wire: Wire | None = None
        try:
            async with edge(CONNECT_SECONDS):
                wire = await self._connect()
                await subscription.subscribe(*channels)
                for _ in channels:
                    await subscription.get_message(timeout=None)
                for subscriber in subscribers:
                    await subscriber.self_test(wire)
                self._mark = await _read_mark(wire)
            self._wire, wire = wire, None
            yield subscription  # where we are cancelled, commands under way go on until `close`
        finally:
            if wire is not None:
                wire.close(StoreDown("the connection was closed"))
            await self._close(subscription.aclose)
            pool = self.client.redis.connection_pool  # an idle connection may lead nowhere
            await self._close(lambda: pool.disconnect(inuse_connections=False))

    async def _connect(self) -> Wire:
        """Open a wire that may run commands."""
        client, address = self.client, await self.client.address()
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: Wire(timeout=self._answer_seconds, lost=self.fail),
            address.host,
            address.port,
            ssl=client.tls,
        )
        try:
            credentials = client.credentials()
            if credentials is not None:
                await wire.run("AUTH", *credentials)
            if client.database:
                await wire.run("SELECT", client.database)
        except BaseException:
            wire.close(StoreDown("the connection was closed"))
            raise
        return wire

    def _answer_seconds(self) -> float:
        return self.settings.timeout

    async def _listen(self, subscription: PubSub, subscribers: Iterable[Subscriber]) -> None:
        """Pass on messages while the circuit is closed."""
        by_channel = {channel: one for one in subscribers for channel in one.channels}
        look_at = self._clock.monotonic() + PROBE
        while self.is_up:
            since = self._clock.monotonic()
            if since >= look_at:
                look_at = since + PROBE
                self._tell(self.heartbeats)
                self._spawn(self._look_at_mark())
            async with edge(self.settings.timeout + _QUIET):
                # It connects anew before it says that a read failed.
                message = await subscription.get_message(timeout=_QUIET)
            if message is None:
                async with edge(self.settings.timeout):
                    await subscription.ping()
                    message = await subscription.get_message(timeout=None)
            if message is not None and message["type"] == "message":
                channel = message["channel"].decode("ascii", "replace")
                by_channel[channel].receive(message["data"].decode("ascii", "replace"), since)

    async def _look_at_mark(self) -> None:
        wire = self._wire
        if wire is None:
            return
        try:
            mark = await _read_mark(wire)
        except StoreDown as down:
            self.fail(down)  # when the store is back, everything is reported again
            return
        if mark != self._mark:
            self._mark = mark
            self._tell(self.restorers)

    async def _close(self, close: Callable[[], Awaitable[object]]) -> None:
        with suppress(StoreDown):  # then it is closed
            async with edge(self.settings.timeout):
                await close()

    @staticmethod
    def _tell(listeners: list[Callable[[], None]]) -> None:
        for tell in listeners:
            tell()


async def _read_mark(wire: Wire) -> Reply:
    """Return the mark; a different one means that the store was emptied."""
    for words in (("SET", _MARK, token_hex(8), "NX"), ("EXPIRE", _MARK, _MARK_SECONDS)):
        wire.send(words, lambda _: None)  # the next command says whether the store is well
    (mark,) = cast("list[Reply]", await wire.run("MGET", _MARK))  # GET fails on another type
    return mark
