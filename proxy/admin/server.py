"""The admin port: metrics, health and status; it never forwards anything."""

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import Final, Literal

from aiohttp import web

from proxy.admin import openapi, status_page
from proxy.admin.actions import ActionLog
from proxy.admin.controls import LISTED, Controls, unknown
from proxy.admin.guard import AdminGuard
from proxy.admin.snapshot import Snapshots
from proxy.admin.status_page import ProxyStatus
from proxy.clock import Clock
from proxy.http.client import Client
from proxy.http.responses import OwnResponse, problem_response
from proxy.pacing.accounts import Accounts
from proxy.problems import Problem
from proxy.rules.advice import notes_on_connections
from proxy.rules.claims import read_claims
from proxy.rules.retry_after import delay_seconds
from proxy.rules.state import AccountState
from proxy.settings import ConfigError, Settings
from proxy.telemetry.connections import RefusedConnections
from proxy.telemetry.exposition import OPEN_METRICS, TEXT
from proxy.telemetry.live import Snapshot
from proxy.telemetry.metrics import Metrics
from proxy.tokens.account_token import TooSoon
from proxy.tokens.managed import ManagedTokens

_CLAIMS: Final = ("iss", "sub", "client_id")  # of a token; nothing else of it is shown


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
        reload: Callable[[], None] | None,
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
        self._controls = Controls(accounts)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from the next request on; the section `admin` needs a restart."""
        self._routes = settings.routes

    def application(self) -> web.Application:
        """Return the application that serves the port."""
        actions = ActionLog(self._accounts.is_configured)
        application = web.Application(middlewares=[actions.note, self._guard.check])
        application.on_response_prepare.append(_drop_server)
        application.router.add_get("/", self._serve_root)
        application.router.add_get("/metrics", self._serve_metrics)
        application.router.add_get("/healthz", self._serve_health)
        application.router.add_get("/readyz", self._serve_readiness)
        application.router.add_get("/status", self._serve_page)
        application.router.add_get("/status.json", self._serve_status)
        application.router.add_get("/history.json", self._serve_history)
        application.router.add_get(openapi.PATH, self._serve_description)
        application.router.add_get("/accounts/{name}", self._serve_account)
        application.router.add_post("/accounts/{name}/refresh", self._refresh)
        for action in ("pause", "resume", "interval"):
            handler = partial(self._controls.obey, action)
            application.router.add_post(f"/accounts/{{name}}/{action}", handler)
        application.router.add_post("/-/reload", self._serve_reload)
        return application

    async def _serve_metrics(self, request: web.Request) -> web.StreamResponse:
        """Answer a scrape: the state is read on the loop, the text is made in a thread."""
        is_open = "application/openmetrics-text" in request.headers.get("Accept", "")

        def text(accounts: Sequence[AccountState]) -> bytes:
            self._metrics.live.snapshot = Snapshot(
                taken_at=self._clock.wall(),
                accounts=accounts,
                connections=connections,
                is_stalled=is_stalled,
            )
            return self._metrics.text(is_open=is_open)

        connections = self._api.connections()
        is_stalled = self._accounts.is_stalled()
        body = await self._snapshots.make(text)
        return OwnResponse(body=body, headers={"Content-Type": OPEN_METRICS if is_open else TEXT})

    async def _serve_health(self, _: web.Request) -> web.StreamResponse:
        return OwnResponse(text="ok\n")

    async def _serve_readiness(self, _: web.Request) -> web.StreamResponse:
        state = self._state()
        if state != "serving":
            return OwnResponse(text=f"{state}\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
        observed = self._accounts.observed()
        if observed:
            shown = ", ".join(observed[:LISTED]) + (", ..." if len(observed) > LISTED else "")
            text = f"ready, but NOT PACING: the pace is only observed, for {shown}\n"
            return OwnResponse(text=text)
        return OwnResponse(text="ready\n")

    async def _serve_root(self, _: web.Request) -> web.StreamResponse:
        return OwnResponse(status=HTTPStatus.FOUND, headers={"Location": "status"})

    async def _serve_page(self, _: web.Request) -> web.StreamResponse:
        return status_page.page()

    async def _serve_description(self, _: web.Request) -> web.StreamResponse:
        return OwnResponse(body=openapi.document(), content_type="application/json")

    async def _serve_status(self, _: web.Request) -> web.StreamResponse:
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
        return OwnResponse(
            body=body, content_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def _serve_history(self, _: web.Request) -> web.StreamResponse:
        body = await self._snapshots.past(self._metrics.history, status_page.past_document)
        return OwnResponse(
            body=body, content_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def _serve_account(self, request: web.Request) -> web.StreamResponse:
        """Answer `explain`: the token's state and claims, the routes' needs, the clock skew."""
        name = request.match_info["name"]
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
        return OwnResponse(text=json.dumps(answer), content_type="application/json")

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

    async def _refresh(self, request: web.Request) -> web.StreamResponse:
        """Mint a token for an account now."""
        token = self._tokens.by_name.get(request.match_info["name"])
        if token is None:
            return unknown("managed account", self._tokens.by_name)
        try:
            await token.refresh()
        except TooSoon as too_soon:
            return OwnResponse(
                text="A token was minted a moment ago.\n",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                headers={"Retry-After": str(delay_seconds(too_soon.wait))},
            )
        except Problem as problem:
            return problem_response(problem, secrets.token_hex(8))
        return OwnResponse(text=json.dumps(asdict(token.state())), content_type="application/json")

    async def _serve_reload(self, _: web.Request) -> web.StreamResponse:
        """Read the configuration again; a bad one is refused with a line per problem."""
        if self._reload is None:
            return OwnResponse(text="No configuration file.\n", status=HTTPStatus.NOT_FOUND)
        try:
            self._reload()
        except ConfigError as error:
            lines = "".join(f"{problem}\n" for problem in error.problems)
            return OwnResponse(text=lines, status=HTTPStatus.UNPROCESSABLE_ENTITY)
        return OwnResponse(text="reloaded\n")


async def _drop_server(_: web.Request, response: web.StreamResponse) -> None:
    """Remove the name and version of the HTTP library from its own error answers."""
    response.headers.popall("Server", None)
