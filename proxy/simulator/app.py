"""The simulator put together: one port, the scripting of it, and its own small HTTP endpoints.

`Simulator` owns the state and is what tests and the demo hold; no rule is decided here. Clocks
are arguments; only `run`, which serves a process of its own, takes the real ones.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from json import JSONDecodeError

from aiohttp import web
from yarl import URL

from proxy.simulator.api import Books, Clocks, ExportApi
from proxy.simulator.grants import GrantOrder, Grants
from proxy.simulator.ledger import AccountReport, Arrival, Counts, summarise
from proxy.simulator.login_server import LoginServer
from proxy.simulator.service_desk import ServiceDesk
from proxy.simulator.settings import SimulatorSettings
from proxy.simulator.tokens import Mint, SigningKey

_MAX_BODY = 512_000
"""The vendor's `request.bytes.max`."""
_KEEP_ALIVE_SECONDS = 75
_SHUTDOWN_SECONDS = 1


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a simulator listens: API and login server alike."""

    url: str


class Simulator:
    """The stand-in API, with methods to script it and to read what arrived."""

    def __init__(
        self,
        settings: SimulatorSettings,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        key: SigningKey | None = None,
    ) -> None:
        """Make a key unless given one; making it takes a good part of a second."""
        self._settings = settings
        self._clocks = Clocks(monotonic=monotonic, wall=wall)
        self._grants = Grants(self._starting_scopes)
        self._books = Books.open(settings, key or SigningKey.generate())
        self._api = ExportApi(self._books, self._clocks)
        self._api.latency = settings.latency
        self._login = LoginServer(settings, self._grants, self._books.tokens, self._clocks)

        self.service_desk = ServiceDesk(settings)
        """The incident table, with what it was told."""

    @property
    def latency(self) -> float:
        """Seconds by which every answer of the API is held back."""
        return self._api.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._api.latency = seconds

    @property
    def login_latency(self) -> float:
        """Seconds by which every answer of the token endpoint is held back."""
        return self._login.latency

    @login_latency.setter
    def login_latency(self, seconds: float) -> None:
        self._login.latency = seconds

    def throttle_logins(self, count: int) -> None:
        """Refuse the next `count` token requests the way the vendor throttles them."""
        self._login.throttled = count

    def grant(self, client_id: str, scope: str, *, propagation: float) -> None:
        """Grant a scope that tokens minted `propagation` seconds from now, or later, carry."""
        effective_at = self._clocks.monotonic() + propagation
        self._grants.grant(client_id, scope, effective_at=effective_at)

    def revoke_token(self, token: str) -> None:
        """Answer `credentials.expired` to a token from now on; KeyError if none such is issued."""
        self._books.tokens.revoke(token)

    def mint(
        self,
        client_id: str,
        *,
        organization: str | None = None,
        user: str | None = None,
        opaque: bool = False,
    ) -> str:
        """Issue a token past the token endpoint, as a log-in elsewhere gets it."""
        spec = self._settings.find_client(client_id) or self._settings.any_client_spec
        order = Mint(
            client_id=client_id,
            scopes=self._grants.held(client_id, self._clocks.monotonic()),
            now=self._clocks.wall(),
            lifetime=spec.token_lifetime,
            token_id=secrets.token_urlsafe(32),
            opaque=opaque or spec.opaque,
            organization=organization or self._settings.organization,
            user=user,
        )
        return self._books.tokens.mint(order)

    def eat_quota(self, client_id: str, seconds: float) -> None:
        """Refuse all of an account's paced arrivals for some seconds, as if others had come."""
        self._books.limiter.eat(client_id, until=self._clocks.monotonic() + seconds)

    def arrivals(self, client_id: str) -> list[Arrival]:
        """Return what arrived for an account, on any path, in order."""
        return self._books.ledger.arrivals(client_id)

    def report(self, client_id: str) -> AccountReport:
        exports = self._books.exports.of(client_id)
        counts = Counts(
            tokens_minted=self._login.minted[client_id],
            exports=len(exports),
            duplicates=exports.duplicates(),
        )
        arrivals = self._books.ledger.arrivals(client_id)
        return summarise(arrivals, interval=self._settings.interval, counts=counts)

    def reset(self) -> None:
        """Forget arrivals, exports, counts and pace; tokens and grants stay as they are."""
        self._books.ledger.reset()
        self._books.exports.reset()
        self._books.limiter.reset()
        self._login.minted.clear()

    def build_app(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_BODY)
        app.add_routes(
            [
                web.post("/oauth/token", self._login.issue_token),
                web.get("/.well-known/jwks.json", self._login.show_keys),
                web.get("/simulator/report", self._show_report),
                web.post("/simulator/grants", self._take_grant),
                web.post("/simulator/reset", self._take_reset),
                *self.service_desk.routes(),
                web.route("*", "/{path:.*}", self._api.handle),
            ]
        )
        return app

    @asynccontextmanager
    async def serve(self, host: str, port: int = 0) -> AsyncIterator[RunningServer]:
        """Listen until the block ends; port 0 takes a free one."""
        runner = web.AppRunner(
            self.build_app(),
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            bound_host, bound_port = runner.addresses[0][:2]
            url = URL.build(scheme="http", host=bound_host, port=bound_port)
            yield RunningServer(str(url.origin()))
        finally:
            await runner.cleanup()

    def _starting_scopes(self, client_id: str) -> frozenset[str]:
        spec = self._settings.find_client(client_id)
        return spec.scopes if spec else frozenset()

    async def _show_report(self, _request: web.Request) -> web.Response:
        known = {*self._settings.clients, *self._login.minted, *self._books.ledger.accounts()}
        accounts = {client_id: asdict(self.report(client_id)) for client_id in sorted(known)}
        return web.json_response({"interval": self._settings.interval, "accounts": accounts})

    async def _take_grant(self, request: web.Request) -> web.Response:
        try:
            order = GrantOrder.from_json(await request.json())
        except JSONDecodeError:
            return web.json_response({"error": "the body must be JSON"}, status=400)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        self.grant(order.client_id, order.scope, propagation=order.propagation)
        return web.json_response(asdict(order), status=201)

    async def _take_reset(self, _request: web.Request) -> web.Response:
        self.reset()
        return web.Response(status=204)


async def run(
    settings: SimulatorSettings, *, host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Serve until cancelled; `announce` gets the URL once the port is open."""
    simulator = Simulator(settings, monotonic=time.monotonic, wall=time.time)
    async with simulator.serve(host, port) as server:
        announce(server.url)
        await asyncio.Event().wait()
