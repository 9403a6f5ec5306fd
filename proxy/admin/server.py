"""The admin port: metrics, health and status; it never forwards anything.

It has its own listener (`http/listener.py`), with the protections of the listen port and with its
own limits of connections and bodies. A head that is not valid, or whose body has no certain end, is
refused as on the listen port; then `AdminGuard` checks who may ask.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import Final, Literal

from proxy.admin import openapi, status_page
from proxy.admin.actions import ActionLog
from proxy.admin.answers import JSON, UNCACHED, content, json_of, text
from proxy.admin.controls import LISTED, Action, Controls, unknown
from proxy.admin.endpoints import Endpoint, Endpoints, Found
from proxy.admin.guard import AdminGuard
from proxy.admin.snapshot import Snapshots
from proxy.admin.status_page import ProxyStatus
from proxy.clock import Clock
from proxy.http.bodies import Bodies
from proxy.http.client import Client
from proxy.http.head import check_own_head
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer, problem_answer
from proxy.pacing.accounts import Accounts
from proxy.problems import Problem
from proxy.rules.advice import notes_on_connections
from proxy.rules.claims import read_claims
from proxy.rules.retry_after import delay_seconds
from proxy.rules.state import AccountState
from proxy.settings import ConfigError, Limits, Settings
from proxy.telemetry.connections import RefusedConnections
from proxy.telemetry.exposition import OPEN_METRICS, TEXT
from proxy.telemetry.live import Snapshot
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TooSoon
from proxy.tokens.managed import ManagedTokens

_CLAIMS: Final = ("iss", "sub", "client_id")  # of a token; nothing else of it is shown
_ORDERS: Final[Sequence[Action]] = ("pause", "resume", "interval")
_CONNECTIONS: Final = 24  # fewer than the descriptors that are kept for them
_MAX_BODY: Final = 2**20  # bytes of an order, more than any has


class Admin:
    """Serves the admin port."""

    def __init__(  # noqa: PLR0913 -- it shows what all of them know
        self,
        settings: Settings,
        *,
        tokens: ManagedTokens,
        accounts: Accounts,
        snapshots: Snapshots,
        api: Client,
        metrics: Metrics,
        clock: Clock,
        connections: Callable[[], int],
        refused_connections: RefusedConnections,
        is_serving: Callable[[], bool],
        reload: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._guard = AdminGuard(settings.admin)
        self._tokens = tokens
        self._accounts = accounts
        self._snapshots = snapshots
        self._api = api
        self._metrics = metrics
        self._clock = clock
        self._connections = connections
        self._refused_connections = refused_connections
        self._is_serving = is_serving
        self._reload = reload
        self._routes = settings.routes
        self.bodies = Bodies(_own(settings.limits))
        self._controls = Controls(accounts, self.bodies)
        self._actions = ActionLog(accounts.is_configured)
        self.endpoints = Endpoints(self._all_endpoints())

    def apply(self, settings: Settings) -> None:
        """Obey new settings from the next request on; the section `admin` needs a restart."""
        self._routes = settings.routes
        self.bodies.apply(_own(settings.limits))

    async def handle(self, request: Request) -> None:
        """Answer a request."""
        request.answer(await self._answer(request))

    async def _answer(self, request: Request) -> OwnAnswer:
        try:
            target = check_own_head(request)
        except Problem as problem:
            return _refused(problem)
        found = self.endpoints.find(request.method, target.path)
        with self._actions.noting(request, found) as outcome:
            answer = await self._guard.refusal(request)
            if answer is None:
                answer = await _handled(request, found)
            outcome.status = answer.status
        return answer

    def _all_endpoints(self) -> Iterator[Endpoint]:
        yield Endpoint("GET", "/", self._serve_root)
        yield Endpoint("GET", "/metrics", self._serve_metrics)
        yield Endpoint("GET", "/healthz", self._serve_health)
        yield Endpoint("GET", "/readyz", self._serve_readiness)
        yield Endpoint("GET", "/status", self._serve_page)
        yield Endpoint("GET", "/status.json", self._serve_status)
        yield Endpoint("GET", "/history.json", self._serve_history)
        yield Endpoint("GET", openapi.PATH, self._serve_description)
        yield Endpoint("GET", "/accounts/{name}", self._serve_account)
        yield Endpoint("POST", "/accounts/{name}/refresh", self._refresh)
        for action in _ORDERS:
            handle = partial(self._controls.obey, action)
            yield Endpoint("POST", f"/accounts/{{name}}/{action}", handle)
        yield Endpoint("POST", "/-/reload", self._serve_reload)

    async def _serve_metrics(self, request: Request, _: str) -> OwnAnswer:
        """Answer a scrape: the state is read on the loop, the text is made in a thread."""
        is_open = "application/openmetrics-text" in request.headers.get("Accept", "")

        def made(accounts: Sequence[AccountState]) -> bytes:
            self._metrics.live.snapshot = Snapshot(
                taken_at=self._clock.wall(),
                accounts=accounts,
                connections=connections,
                is_stalled=is_stalled,
            )
            return self._metrics.text(is_open=is_open)

        connections = self._api.connections()
        is_stalled = self._accounts.is_stalled()
        body = await self._snapshots.make(made)
        return content(body, OPEN_METRICS if is_open else TEXT)

    async def _serve_health(self, _: Request, __: str) -> OwnAnswer:
        return text("ok\n")

    async def _serve_readiness(self, _: Request, __: str) -> OwnAnswer:
        state = self._state()
        if state != "serving":
            return text(f"{state}\n", HTTPStatus.SERVICE_UNAVAILABLE)
        observed = self._accounts.observed()
        if observed:
            shown = ", ".join(observed[:LISTED]) + (", ..." if len(observed) > LISTED else "")
            return text(f"ready, but NOT PACING: the pace is only observed, for {shown}\n")
        return text("ready\n")

    async def _serve_root(self, _: Request, __: str) -> OwnAnswer:
        return OwnAnswer(HTTPStatus.FOUND, "", [("Location", "status")], b"")

    async def _serve_page(self, _: Request, __: str) -> OwnAnswer:
        return status_page.page()

    async def _serve_description(self, _: Request, __: str) -> OwnAnswer:
        return content(openapi.document(), JSON)

    async def _serve_status(self, _: Request, __: str) -> OwnAnswer:
        status = ProxyStatus(
            at=self._clock.wall(),
            state=self._state(),
            store_up=self._metrics.servers.is_store_up,
            clock_skew=dict(self._metrics.servers.skews),
            observed=self._accounts.observed(),
            connections=self._connections(),
            notes=notes_on_connections(self._refused_connections.recent()),
        )
        body = await self._snapshots.make(lambda states: status_page.document(status, states))
        return content(body, JSON, UNCACHED)

    async def _serve_history(self, _: Request, __: str) -> OwnAnswer:
        body = await self._snapshots.past(self._metrics.history, status_page.past_document)
        return content(body, JSON, UNCACHED)

    async def _serve_account(self, _: Request, name: str) -> OwnAnswer:
        """Answer `explain`: the token's state and claims, the routes' needs, the clock skew."""
        if not self._accounts.is_configured(name):
            return unknown("account", self._accounts.names())
        token = self._tokens.by_name.get(name)
        answer = {
            "name": name,
            "token": None if token is None else asdict(token.state()),
            "claims": self._claims(name),
            "clock_skew": self._metrics.servers.skews,
            "routes": [route.model_dump(mode="json") for route in self._routes],
        }
        return json_of(answer)

    def _claims(self, name: str) -> dict[str, str]:
        account = self._tokens.by_name.get(name)
        token = None if account is None else account.current()
        claims = None if token is None else read_claims(token.value)
        said = {} if claims is None else {key: claims.payload.get(key) for key in _CLAIMS}
        return {key: value for key, value in said.items() if isinstance(value, str)}

    def _state(self) -> Literal["serving", "stalled", "not serving"]:
        if not self._is_serving():
            return "not serving"
        return "stalled" if self._accounts.is_stalled() else "serving"

    async def _refresh(self, _: Request, name: str) -> OwnAnswer:
        """Mint a token for an account now. Raises a Problem if none comes."""
        token = self._tokens.by_name.get(name)
        if token is None:
            return unknown("managed account", self._tokens.by_name)
        try:
            await token.refresh()
        except TooSoon as too_soon:
            return text(
                "A token was minted a moment ago.\n",
                HTTPStatus.TOO_MANY_REQUESTS,
                [("Retry-After", str(delay_seconds(too_soon.wait)))],
            )
        return json_of(asdict(token.state()))

    async def _serve_reload(self, _: Request, __: str) -> OwnAnswer:
        """Read the configuration again; a bad one is refused with a line per problem."""
        if self._reload is None:
            return text("No configuration file.\n", HTTPStatus.NOT_FOUND)
        try:
            await self._reload()
        except ConfigError as error:
            lines = "".join(f"{problem}\n" for problem in error.problems)
            return text(lines, HTTPStatus.UNPROCESSABLE_ENTITY)
        return text("reloaded\n")


async def _handled(request: Request, found: Found | OwnAnswer) -> OwnAnswer:
    """Return the answer of the request's handler; a refusal if there is none, or it refuses."""
    if not isinstance(found, Found):
        return found
    try:
        return await found.endpoint.handle(request, found.name)
    except Problem as problem:
        return _refused(problem)


def _refused(problem: Problem) -> OwnAnswer:
    return problem_answer(problem, secrets.token_hex(16))


def _own(limits: Limits) -> Limits:
    """Return this port's limits: times and heads as on the listen port, the others its own."""
    own = {
        "max_connections": _CONNECTIONS,
        "max_body": _MAX_BODY,
        "max_buffered": _CONNECTIONS * _MAX_BODY,
    }
    return limits.model_copy(update=own)
