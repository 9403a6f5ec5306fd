"""The connection to the store, and its circuit breaker.

A command takes at most `timeout` and is never repeated: one that timed out may still have been
carried out. The first failure opens the circuit, so no other command waits for the next one. Every
`PROBE` seconds the connection tries whether the store is back, all replicas at the same moments of
the wall clock, so that they return together. The store is up while it runs our commands and we are
subscribed to it. Every `PROBE` seconds we read a mark in it: a new mark means that the store has
lost what it was told.

Invariants: a command runs in a task of its own, not in the caller's, so a cancelled caller leaves
no reply behind and costs no connection. While the store is down no command is sent. `went_down` and
`came_back` are called in turns, beginning with either.
"""

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, Final, Protocol, TypeVar

import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from proxy.clock import Clock
from proxy.settings import Store
from proxy.store.client import COMMANDS, PREFIX, connect
from proxy.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

PROBE: Final = 1.0  # seconds
_QUIET: Final = 0.5  # seconds without news after which the server is asked for a sign of life
_TURNS: Final = 20  # of our own loop, which may be busy, before the server is blamed
_TURN: Final = 0.001  # seconds
_MARK: Final = PREFIX + "mark"
_MARK_SECONDS: Final = 86_400  # no less than anything else is kept, so that it is evicted last
_T = TypeVar("_T")


class StoreDown(Exception):
    """The store did not answer in time, or not sensibly; says by which kind of error."""


class Subscriber(Protocol):
    """The owner of the connection, which it tells what others publish."""

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels to listen to."""
        ...

    def receive(self, text: str, since: float) -> None:
        """Act on a message that came after `since` (monotonic)."""
        ...

    async def self_test(self) -> None:
        """Run what will be run later, to see that it works. Raises what redis-py raises."""
        ...


class Connection:
    """Talks to the store; calls `went_down` and `came_back` when it stops or begins to answer.

    `settled` is set once it is known whether it answers. Those in `restorers` are called when it
    comes back, and when it turns out to have lost what it was told.
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
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._room = asyncio.Semaphore(COMMANDS)
        self._is_closed = False
        self._mark: bytes | None = None
        self.redis, self._sentinels = connect(settings)

    def __repr__(self) -> str:
        return f"<Connection {'up' if self.is_up else 'down'}>"

    def apply(self, settings: Store) -> None:
        """Obey new settings from now on; the URL stays what it was."""
        self.settings = settings
        if not self.is_up:
            self._tell(self.went_down)  # waiters may have to be refused

    async def call(self, command: Callable[[], Awaitable[_T]]) -> _T:
        """Run a command. Raises StoreDown if it fails, or at once while the circuit is open."""
        if not self.is_up or self._is_closed:
            raise StoreDown
        result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._spawn(self._carry_out(command, result))
        return await result

    def _fail(self, down: StoreDown) -> None:
        """Open the circuit."""
        if self._is_closed or (self.settled.is_set() and not self.is_up):
            return
        self.is_up = False
        self._metrics.store_is(up=False)
        _log.warning("the store is down", error=str(down), on_failure=self.settings.on_failure)
        # Idle connections lead to a server that is in trouble.
        pool = self.redis.connection_pool
        self._spawn(self._close(lambda: pool.disconnect(inuse_connections=False)))
        self._tell(self.went_down)
        self.settled.set()

    async def run(self, subscriber: Subscriber) -> None:
        """Listen, and look whether the store is back, until cancelled."""
        while True:
            try:
                async with self._subscribed(subscriber) as news:
                    self.is_up = True
                    self._metrics.store_is(up=True)
                    _log.info("the store is up")
                    self._tell(self.came_back)
                    self._tell(self.restorers)
                    self.settled.set()
                    await self._listen(news, subscriber)
            except StoreDown as down:
                self._fail(down)
            # By the wall clock, which replicas have in common.
            pause = PROBE - self._clock.wall() % PROBE
            await self._clock.sleep_until(self._clock.monotonic() + pause)

    async def close(self) -> None:
        """Close all connections; from now on every command fails."""
        self._is_closed = True
        self.is_up = False
        self._tell(self.went_down)
        for _ in range(COMMANDS):  # what is under way ends soon, one way or the other
            await self._room.acquire()
        for client in (self.redis, *self._sentinels):
            await self._close(client.aclose)

    async def _carry_out(
        self, command: Callable[[], Awaitable[_T]], result: asyncio.Future[_T]
    ) -> None:
        try:
            async with self._room:
                outcome = await self._run_now(command)
            if not result.done():  # else nobody waits any more
                result.set_result(outcome)
        except StoreDown as down:
            if not result.done():
                result.set_exception(down)
        finally:
            result.cancel()  # where we were cancelled

    async def _run_now(self, command: Callable[[], Awaitable[_T]]) -> _T:
        if not self.is_up:
            raise StoreDown
        try:
            async with self._edge():
                return await command()
        except StoreDown as down:
            self._fail(down)
            raise

    @asynccontextmanager
    async def _edge(self, quiet: float = 0.0) -> AsyncIterator[None]:
        """Bound what redis-py does in here, and turn whatever it raises into StoreDown.

        Its errors are not only its own: a connection that was reset is a RuntimeError of uvloop's,
        an odd answer a ValueError. So nothing but calls of redis-py belongs in here.
        """
        try:
            async with self._timeout(quiet):
                yield
        except Exception as error:  # noqa: BLE001 -- the edge of a foreign library, as said above
            # The error's text may name the server, and with some errors its password.
            kind = type(error).__name__
            if not isinstance(error, RedisError | OSError | TimeoutError):
                *_, (frame, line) = traceback.walk_tb(error.__traceback__)
                where = f"{frame.f_code.co_filename}:{line}"
                _log.error("the store's client failed", error=kind, where=where)
            raise StoreDown(kind) from None

    @asynccontextmanager
    async def _timeout(self, quiet: float) -> AsyncIterator[None]:
        """Bound what is inside by `timeout`, after `quiet` seconds in which nothing need happen.

        Then our own loop gets some turns to read what may have come meanwhile: they take no time
        where the server is to blame, and as long as it takes where we are.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle
        async with asyncio.timeout(None) as limit:

            def look(turns_left: int) -> None:
                nonlocal timer
                if turns_left:
                    timer = loop.call_later(_TURN, look, turns_left - 1)
                else:
                    limit.reschedule(loop.time())

            timer = loop.call_later(quiet + self.settings.timeout, look, _TURNS)
            try:
                yield
            finally:
                timer.cancel()

    @asynccontextmanager
    async def _subscribed(self, subscriber: Subscriber) -> AsyncIterator[PubSub]:
        """Subscribe for as long as the context lasts, if the store can do what we need."""
        news = self.redis.pubsub()
        try:
            async with self._edge():
                await news.subscribe(*subscriber.channels)
                for _ in subscriber.channels:
                    await news.get_message(timeout=None)
            # On all connections: they are made now, and not in the first rush.
            await asyncio.gather(*(self._self_tested(subscriber) for _ in range(COMMANDS)))
            async with self._edge():
                self._mark = await self._read_mark()
            yield news
        finally:
            await self._close(news.aclose)

    async def _self_tested(self, subscriber: Subscriber) -> None:
        async with self._edge():
            await subscriber.self_test()

    async def _listen(self, news: PubSub, subscriber: Subscriber) -> None:
        """Hand on messages for as long as the circuit is closed."""
        look_at = self._clock.monotonic() + PROBE
        while self.is_up:
            since = self._clock.monotonic()
            if since >= look_at:
                look_at = since + PROBE
                self._spawn(self._look_at_mark())
            async with self._edge(_QUIET):  # it connects anew before it says that a read failed
                message = await news.get_message(timeout=_QUIET)
            if message is None:
                async with self._edge():
                    await news.ping()
                    message = await news.get_message(timeout=None)
            if message is not None and message["type"] == "message":
                subscriber.receive(message["data"].decode("ascii", "replace"), since)

    async def _look_at_mark(self) -> None:
        try:
            mark = await self.call(self._read_mark)
        except StoreDown:
            return  # when the store is back, all is told again
        if mark != self._mark:
            self._mark = mark
            self._tell(self.restorers)

    async def _read_mark(self) -> bytes | None:
        """Return the mark, by which a store that was emptied is told from the one before."""
        commands: Any = self.redis.pipeline(transaction=False)
        commands.set(_MARK, token_hex(8), nx=True).expire(_MARK, _MARK_SECONDS)
        commands.mget([_MARK])  # GET fails on a key of another type
        mark: bytes | None
        *_, (mark,) = await commands.execute()
        return mark

    async def _close(self, close: Callable[[], Awaitable[object]]) -> None:
        with suppress(StoreDown):  # then it is closed
            async with self._edge():
                await close()

    @staticmethod
    def _tell(listeners: list[Callable[[], None]]) -> None:
        for tell in listeners:
            tell()
