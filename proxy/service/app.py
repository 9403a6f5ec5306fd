"""Wiring: the parts of one proxy, and how new settings reach them; no decisions.

`Proxy` holds what a reload keeps: queues, holds, tokens, issued tokens, connections. A reload calls
`apply` of each part; a request under way goes on as it was admitted.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics

from proxy.admin.server import Admin
from proxy.admin.snapshot import Snapshots
from proxy.clock import Clock
from proxy.forwarding.attempts import Attempts
from proxy.forwarding.drain import Drain
from proxy.forwarding.handler import Handler
from proxy.forwarding.intake import Intake
from proxy.forwarding.journal import Journal
from proxy.forwarding.merging import Merging
from proxy.forwarding.relay import Relay
from proxy.forwarding.repeats import Repeats
from proxy.forwarding.routes import Routes
from proxy.forwarding.sending import Sender
from proxy.forwarding.token_calls import TokenCalls
from proxy.http.bodies import Bodies
from proxy.http.client import Client
from proxy.http.listener import Listener, NewestServed
from proxy.http.request import Request
from proxy.identity.callers import Identity
from proxy.identity.issuer import Issuer
from proxy.incidents.incidents import Incidents
from proxy.incidents.watch import Watch
from proxy.pacing.accounts import Accounts
from proxy.problems import PROXY_NAME
from proxy.rules.line_budget import Owner
from proxy.service.reload import Files, check_reload, check_start, read_files
from proxy.service.sharing import Sharing
from proxy.settings import Settings
from proxy.settings.files import aside
from proxy.telemetry.callers import Callers
from proxy.telemetry.connections import RefusedConnections
from proxy.telemetry.logs import Sink
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.process import ProcessMetrics
from proxy.telemetry.refusals import Refusals
from proxy.tokens.login_server import LoginServer
from proxy.tokens.managed import ManagedTokens


class Proxy:
    """The parts of one running proxy.

    Raises ConfigError if a file that the settings name cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        *,
        sink: Sink | None = None,
        reload: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        files = read_files(settings)
        check_start(files)
        self.settings = settings
        self.clock = clock
        self._may_log = _always if sink is None else sink.take_room
        self._log = _log_info if sink is None else sink.info
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they are of no use here
        self.registry = CollectorRegistry()
        self.metrics = Metrics(
            self.registry,
            interval=settings.pacing.interval,
            longest_wait=settings.pacing.max_wait,
            log_lines_dropped=_never if sink is None else lambda: sink.dropped,
            wall=clock.wall,
            process=ProcessMetrics(),
        )
        self.refusals = Refusals()
        self.callers = Callers()
        self.sharing = Sharing(settings, clock, self.metrics, tasks)
        self.drain = drain = Drain()
        self.accounts = Accounts(
            settings,
            clock=clock,
            metrics=self.metrics,
            random=random.random,
            leases=self.sharing.leases(),
            is_draining=lambda: drain.has_begun,
            closes_at=lambda: drain.closes_at,
        )
        self.sharing.listen(self.accounts.operators)
        self.api = Client(
            settings.upstream,
            settings.upstream.api_url,
            clock=clock,
            max_header=settings.limits.max_header,
        )
        self.login_server = Client(settings.upstream, settings.upstream.login_url, clock=clock)
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
            settings,
            clock=clock,
            tokens=self._tokens,
            issuer=self.issuer,
            api=self.api,
            spawn=tasks.create_task,
            shared=self.sharing.tokens(),
        )
        self.repeats = Repeats(
            settings,
            api=self.api,
            store=self.sharing.repeats(settings),
            clock=clock,
            drain=drain,
            metrics=self.metrics,
            spawn=tasks.create_task,
        )
        self.incidents = Incidents(
            settings,
            Watch(settings, accounts=self.accounts, tokens=self._tokens, clock=clock),
            self.sharing.ledger(),
            clock=clock,
            metrics=self.metrics,
            spawn=tasks.create_task,
        )
        self.merging = Merging(api=self.api, spawn=tasks.create_task)
        self._login = TokenCalls(
            self.login_server, self.identity, clock=clock, metrics=self.metrics, drain=drain
        )
        self.handler = self._make_handler()
        refused_connections = RefusedConnections(self.metrics, clock=clock)
        self.listener = Listener(
            self._handle,
            self.bodies.room,
            clock=clock,
            write_timeout=settings.upstream.response_timeout,
            on_refused=refused_connections.note,
        )
        self.tls = files.tls
        self.snapshots = Snapshots(
            self.accounts, self._tokens, self.refusals, self.callers, clock=clock
        )
        self.admin = Admin(
            settings,
            tokens=self._tokens,
            accounts=self.accounts,
            snapshots=self.snapshots,
            api=self.api,
            metrics=self.metrics,
            clock=clock,
            connections=lambda: self.listener.connections,
            refused_connections=refused_connections,
            is_serving=lambda: self.is_listening and not self.drain.is_announced,
            reload=reload,
        )
        self.admin_listener = NewestServed(self.admin.handle, self.admin.bodies.room, clock=clock)

    async def reload(self, settings: Settings) -> None:
        """Read what new settings name, then obey them; raises like `apply`."""
        self.apply(settings, await aside(lambda: read_files(settings)))

    def apply(self, settings: Settings, files: Files) -> None:
        """Obey new settings from now on; `files` holds what they name.

        Raises ConfigError, and changes nothing, if they need a restart or name an unusable file.
        """
        check_reload(self.settings, settings, files)
        self.settings = settings
        self.api.apply(
            settings.upstream, settings.upstream.api_url, max_header=settings.limits.max_header
        )
        self.login_server.apply(settings.upstream, settings.upstream.login_url)
        self.repeats.apply(settings)
        self.sharing.apply(settings)
        self.accounts.apply(settings)
        self.identity.apply(settings)
        self.metrics.apply(settings)
        self.refusals.apply(settings)
        self.callers.apply(settings)
        self.bodies.apply(settings.limits)
        self.listener.apply(write_timeout=settings.upstream.response_timeout, tls=files.tls)
        self.issuer.apply(settings)
        for client_id in self._tokens.apply(settings, files.fingerprints):
            self.identity.forget(client_id)  # an old secret proved these; the new one has to
        self.admin.apply(settings)
        self.incidents.apply(settings)
        self.handler = self._make_handler()

    def begin_drain(self) -> None:
        """Refuse requests that wait or arrive from now on; sent requests go on."""
        self.drain.begin()
        self.accounts.drain()

    async def give_up(self) -> None:
        """Break off the unanswered requests, and tell their callers."""
        self._tokens.close()
        self.identity.close()
        for upstream in (self.api, self.login_server, self.issuer):
            await upstream.give_up()

    async def close(self) -> None:
        """Close the connections to other servers."""
        self._tokens.close()
        self.identity.close()
        self.snapshots.close()
        await self.incidents.close()
        await self.sharing.close()
        for upstream in (self.api, self.login_server, self.issuer):
            await upstream.close()

    @property
    def handled(self) -> int:
        """How many callers wait for an answer."""
        return self._under_way

    @property
    def under_way(self) -> int:
        """How many requests are being answered, including those whose callers left."""
        return self._under_way + self.repeats.under_way

    async def _handle(self, request: Request) -> None:
        self._under_way += 1
        try:
            await self.handler(request)
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
                callers=self.callers,
                accounts=self.accounts,
                drain=self.drain,
                attempts=Attempts(
                    self.api,
                    clock=self.clock,
                    metrics=self.metrics,
                    quota=self.settings.quota,
                ),
                merging=self.merging,
            ),
            repeats=self.repeats,
            relay=Relay(self.api, pseudonym=self._pseudonym),
            login=self._login,
            journal=Journal(
                clock=self.clock,
                metrics=self.metrics,
                refusals=self.refusals,
                callers=self.callers,
                watch=self.incidents.watch,
                may_log=self._may_log,
                log=self._log,
            ),
        )


def _log_info(event: str, facts: Mapping[str, object]) -> None:
    structlog.get_logger(__name__).info(event, **facts)


def _always(_: Owner) -> bool:
    return True


def _never() -> int:
    return 0
