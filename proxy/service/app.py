"""Wiring: the parts of the proxy, the two listeners, and their lifetimes; no decisions.

`Proxy` holds what outlives a reload: lines, holds, tokens, what was learned, connections. A reload
hands the new settings to each part; what is under way goes on as it was admitted.
"""

import asyncio
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, disable_created_metrics

from proxy.admin.server import Admin
from proxy.admin.snapshot import Snapshots
from proxy.clock import Clock
from proxy.forwarding.attempts import Attempts
from proxy.forwarding.drain import Drain
from proxy.forwarding.handler import Handler
from proxy.forwarding.intake import Intake
from proxy.forwarding.journal import Journal
from proxy.forwarding.relay import Relay
from proxy.forwarding.routes import Routes
from proxy.forwarding.sending import Sender
from proxy.forwarding.token_calls import Login
from proxy.http.bodies import Bodies
from proxy.http.client import Client
from proxy.http.server import Server, Site
from proxy.http.tls import tls_context, verifying_context
from proxy.identity.callers import Identity
from proxy.identity.issuer import Issuer
from proxy.pacing.accounts import Accounts
from proxy.pacing.turns import Alone, Turns
from proxy.problems import PROXY_NAME
from proxy.settings import Admin as AdminSettings
from proxy.settings import ConfigError, Limits, Listen, Settings, Store
from proxy.store.connection import Connection
from proxy.store.issued_tokens import SharedTokens
from proxy.store.turns import SharedTurns
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.refusals import Refusals
from proxy.tokens.login_server import LoginServer
from proxy.tokens.managed import ManagedTokens

_log = structlog.get_logger(__name__)

_LAST_SECONDS = 2.0  # of the drain, in which what is still unanswered is given up and told so
_DRAIN_POLL = 0.05
_BACKLOG = 128
_ADMIN_CONNECTIONS = 24  # fewer than the descriptors that are kept for it


class Proxy:
    """The parts of one running proxy.

    Raises ConfigError if a file that the settings name cannot be used.
    """

    def __init__(self, settings: Settings, clock: Clock, tasks: asyncio.TaskGroup) -> None:
        _refuse([*_unusable(settings)])
        self.settings = settings
        self.clock = clock
        self.may_log: Callable[[], bool] = lambda: True
        self._forever: list[asyncio.Task[None]] = []
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they are of no use here
        self.registry = CollectorRegistry()
        self.metrics = Metrics(
            self.registry,
            interval=settings.pacing.interval,
            longest_wait=settings.pacing.max_wait,
        )
        self.refusals = Refusals()
        self.store, turns = self._connect_store(settings.store, tasks)
        self.drain = drain = Drain()
        self.accounts = Accounts(
            settings,
            clock=clock,
            metrics=self.metrics,
            random=random.random,
            turns=turns,
            is_draining=lambda: drain.has_begun,
        )
        self.api = Client(settings.upstream, settings.upstream.api_url, clock=clock)
        self.login_server = Client(settings.upstream, settings.upstream.login_url, clock=clock)
        shared = None
        if self.store is not None:
            shared = SharedTokens(self.store, clock=clock, spawn=tasks.create_task)
        self.bodies = Bodies(settings.limits)
        self.is_listening = False
        self._under_way = 0
        self._pseudonym = f"{PROXY_NAME}-{secrets.token_hex(4)}"
        self._tokens = ManagedTokens(
            LoginServer(self.login_server, clock=clock),
            clock=clock,
            metrics=self.metrics,
            random=random.random,
            tasks=tasks,
        )
        self._tokens.apply(settings)
        self.issuer = Issuer(settings, clock=clock)
        self.identity = Identity(
            settings, clock=clock, tokens=self._tokens, issuer=self.issuer, shared=shared
        )
        self._login = Login(
            self.login_server, self.identity, clock=clock, patience=settings.pacing.max_wait
        )
        self.handler = self._make_handler()
        self.server = Server(
            self._handle, settings.limits, write_timeout=settings.upstream.response_timeout
        )
        self.tls = None if settings.listen.tls is None else tls_context(settings.listen.tls)
        self.census = Snapshots(self.accounts, self.identity, self.refusals, clock=clock)
        self.admin = Admin(
            settings.admin,
            identity=self.identity,
            accounts=self.accounts,
            census=self.census,
            api=self.api,
            metrics=self.metrics,
            clock=clock,
            is_serving=lambda: self.is_listening and not self.drain.has_begun,
        )
        self.admin.routes = settings.routes

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on.

        Raises ConfigError, and changes nothing, if they ask for what only a restart can do or name
        a file that cannot be used.
        """
        _refuse([*_unreloadable(self.settings, settings), *_unusable(settings)])
        tls = settings.listen.tls
        if tls is not None and self.tls is not None:
            self.tls.load_cert_chain(tls.cert_file, tls.key_file)
        self.settings = settings
        self.api.apply(settings.upstream, settings.upstream.api_url)
        self.login_server.apply(settings.upstream, settings.upstream.login_url)
        self._login.patience = settings.pacing.max_wait
        if self.store is not None:
            self.store.apply(settings.store)
        self.accounts.apply(settings)
        self.identity.apply(settings)
        names = [account.name for account in settings.accounts]
        self.metrics.keep(names)
        self.refusals.keep(names)
        self.bodies.limits = self.server.limits = settings.limits
        self.server.write_timeout = settings.upstream.response_timeout
        self.issuer.apply(settings)
        for client_id in self._tokens.apply(settings):
            self.identity.forget(client_id)  # an old secret proved these; the new one has to
        self.admin.routes = settings.routes
        self.handler = self._make_handler()

    def begin_drain(self) -> None:
        """Refuse whoever waits or comes from now on; what has been sent goes on."""
        self.drain.begin()
        self.accounts.drain()

    async def give_up(self) -> None:
        """Break off what is still unanswered; who waits for it is told."""
        self._tokens.close()
        for upstream in (self.api, self.login_server, self.issuer):
            await upstream.give_up()

    async def close(self) -> None:
        """Close what the proxy holds open towards other servers."""
        self._tokens.close()
        self.census.close()
        for task in self._forever:
            task.cancel()
        if self.store is not None:
            await self.store.close()
        for upstream in (self.api, self.login_server, self.issuer):
            await upstream.close()

    @property
    def under_way(self) -> int:
        """How many requests are being answered."""
        return self._under_way

    def _connect_store(
        self, settings: Store, tasks: asyncio.TaskGroup
    ) -> tuple[Connection | None, Turns]:
        if settings.url.get_secret_value() == "memory://":
            return None, Alone()
        spawn = tasks.create_task
        connection = Connection(settings, clock=self.clock, metrics=self.metrics, spawn=spawn)
        turns = SharedTurns(connection, clock=self.clock, metrics=self.metrics, spawn=spawn)
        self._forever.append(spawn(connection.run(turns)))
        return connection, turns

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._under_way += 1
        try:
            return await self.handler(request)
        finally:
            self._under_way -= 1

    def _make_handler(self) -> Handler:
        return Handler(
            intake=Intake(
                settings=self.settings,
                pseudonym=self._pseudonym,
                identity=self.identity,
                accounts=self.accounts,
                bodies=self.bodies,
                drain=self.drain,
            ),
            routes=Routes(self.settings, self.metrics),
            sender=Sender(
                self.settings,
                clock=self.clock,
                metrics=self.metrics,
                accounts=self.accounts,
                drain=self.drain,
                attempts=Attempts(
                    self.api,
                    clock=self.clock,
                    metrics=self.metrics,
                    max_hold=self.settings.retry.max_retry_after,
                ),
            ),
            relay=Relay(self.api, pseudonym=self._pseudonym),
            login=self._login,
            journal=Journal(
                clock=self.clock,
                metrics=self.metrics,
                refusals=self.refusals,
                may_log=lambda: self.may_log(),  # noqa: PLW0108 -- it may be replaced
            ),
        )


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that serves; the URLs have the ports that were really taken."""

    url: str
    admin_url: str
    proxy: Proxy

    @property
    def accounts(self) -> Accounts:
        """The lines."""
        return self.proxy.accounts


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock, *, reload: Callable[[], None] | None = None
) -> AsyncIterator[Running]:
    """Run a proxy for as long as the context lasts; at its end it drains.

    `reload` is what the admin port's reload calls; it raises ConfigError if it cannot. A background
    task that fails, which would be a bug, ends the proxy.
    """
    try:
        async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
            proxy = Proxy(settings, clock, tasks)
            proxy.admin.reload = reload
            stack.push_async_callback(proxy.close)
            if proxy.store is not None:
                await proxy.store.settled.wait()
            admin = _AdminRunner(proxy.admin.application(), settings.limits)
            admin_url = await _listen(stack, admin, "admin", settings.admin)
            public = web.ServerRunner(proxy.server, shutdown_timeout=_LAST_SECONDS / 4)
            url = await _listen(stack, public, "listen", settings.listen, tls=proxy.tls)
            proxy.is_listening = True
            yield Running(url, admin_url, proxy)
            await _drain(proxy, public)
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # as it was before the task group wrapped it


class _AdminRunner(web.AppRunner):
    """Serves the admin port with the listen port's care, and connections of its own to count."""

    __slots__ = ("_limits",)

    def __init__(self, application: web.Application, limits: Limits) -> None:
        super().__init__(application, access_log=None, shutdown_timeout=_LAST_SECONDS / 4)
        self._limits = limits.model_copy(
            update={
                "max_connections": _ADMIN_CONNECTIONS,
                "max_connections_per_peer": _ADMIN_CONNECTIONS,
            }
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(made.request_handler, self._limits, request_factory=made.request_factory)


async def _drain(proxy: Proxy, public: web.ServerRunner) -> None:
    """Refuse what waits, deliver what is in flight, and give up what is not answered in time."""
    limits = proxy.settings.limits
    begun = proxy.clock.monotonic()
    deadline = begun + limits.drain_timeout - _LAST_SECONDS
    proxy.begin_drain()
    await proxy.clock.sleep_until(begun + limits.drain_delay)
    for site in list(public.sites):
        await site.stop()
    while proxy.under_way and proxy.clock.monotonic() < deadline:
        await proxy.clock.sleep_until(proxy.clock.monotonic() + _DRAIN_POLL)
    await proxy.give_up()


async def _listen(
    stack: AsyncExitStack,
    runner: web.BaseRunner,
    section: str,
    at: Listen | AdminSettings,
    *,
    tls: ssl.SSLContext | None = None,
) -> str:
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = Site(runner, at.host, at.port, backlog=_BACKLOG, ssl_context=tls)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError((f"{section}.port: cannot be listened on: {error.strerror}",)) from None
    return f"{'https' if tls else 'http'}://{at.host}:{runner.addresses[0][1]}"


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError(tuple(problems))


def _unreloadable(old: Settings, new: Settings) -> Iterator[str]:
    """Yield a line for each change that only a restart can make."""
    changes = {
        "listen.host": old.listen.host != new.listen.host,
        "listen.port": old.listen.port != new.listen.port,
        "listen.tls": (old.listen.tls is None) != (new.listen.tls is None),
        "admin": old.admin != new.admin,
        "store.url": old.store.url != new.store.url,
    }
    for key, is_changed in changes.items():
        if is_changed:
            yield f"{key}: cannot be changed by a reload; restart instead"


def _unusable(settings: Settings) -> Iterator[str]:
    """Yield a line for each certificate or key that cannot be used."""
    try:
        if settings.listen.tls is not None:
            tls_context(settings.listen.tls)
    except OSError as error:
        yield f"listen.tls: cannot be used: {error.strerror or type(error).__name__}"
    try:
        verifying_context(settings.upstream.ca_file)
    except OSError as error:
        yield f"upstream.ca_file: cannot be used: {error.strerror or type(error).__name__}"
