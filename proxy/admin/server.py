"""The admin port: metrics, health and status; it never forwards anything."""

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Final, Literal

from aiohttp import web

from proxy.admin import status_page
from proxy.admin.guard import AdminGuard
from proxy.admin.snapshot import Snapshots
from proxy.admin.status_page import Standing
from proxy.clock import Clock
from proxy.http.client import Client
from proxy.http.responses import OwnResponse, problem_response
from proxy.identity.callers import Identity
from proxy.pacing.accounts import Accounts
from proxy.problems import Problem
from proxy.rules.claims import read_claims
from proxy.rules.retry_after import delay_seconds
from proxy.rules.state import AccountState
from proxy.settings import Admin as AdminSettings
from proxy.settings import ConfigError, Route
from proxy.telemetry.exposition import OPEN_METRICS, TEXT
from proxy.telemetry.metrics import Metrics, Snapshot
from proxy.tokens.account_token import TooSoon

_CLAIMS: Final = ("iss", "sub", "client_id")  # of a token; the others are nobody's business


class Admin:
    """Serves the admin port."""

    def __init__(  # noqa: PLR0913 -- it shows what all of them know
        self,
        settings: AdminSettings,
        *,
        identity: Identity,
        accounts: Accounts,
        census: Snapshots,
        api: Client,
        metrics: Metrics,
        clock: Clock,
        is_serving: Callable[[], bool],
    ) -> None:
        self._guard = AdminGuard(settings)
        self._identity = identity
        self._accounts = accounts
        self._census = census
        self._api = api
        self._metrics = metrics
        self._clock = clock
        self._is_serving = is_serving
        self.reload: Callable[[], None] | None = None
        self.routes: Sequence[Route] = ()

    def application(self) -> web.Application:
        """Return the application that serves the port."""
        application = web.Application(middlewares=[self._guard.check])
        application.on_response_prepare.append(_drop_server)
        application.router.add_get("/metrics", self._serve_metrics)
        application.router.add_get("/healthz", self._serve_health)
        application.router.add_get("/readyz", self._serve_readiness)
        application.router.add_get("/status", self._serve_page)
        application.router.add_get("/status.json", self._serve_status)
        application.router.add_get("/accounts/{name}", self._serve_account)
        application.router.add_post("/accounts/{name}/refresh", self._refresh)
        application.router.add_post("/-/reload", self._reload)
        return application

    async def _serve_metrics(self, request: web.Request) -> web.StreamResponse:
        """Answer a scrape: what is live is read on the loop, the text made beside it."""
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
        body = await self._census.make(text)
        return OwnResponse(body=body, headers={"Content-Type": OPEN_METRICS if is_open else TEXT})

    async def _serve_health(self, _: web.Request) -> web.StreamResponse:
        return OwnResponse(text="ok\n")

    async def _serve_readiness(self, _: web.Request) -> web.StreamResponse:
        state = self._state()
        if state != "serving":
            return OwnResponse(text=f"{state}\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
        return OwnResponse(text="ready\n")

    async def _serve_page(self, _: web.Request) -> web.StreamResponse:
        return status_page.page()

    async def _serve_status(self, _: web.Request) -> web.StreamResponse:
        standing = Standing(
            at=self._clock.wall(),
            state=self._state(),
            store_up=self._metrics.is_store_up,
            clock_skew=dict(self._metrics.skews),
        )
        body = await self._census.make(lambda states: status_page.document(standing, states))
        return OwnResponse(
            body=body, content_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def _serve_account(self, request: web.Request) -> web.StreamResponse:
        """Tell what `explain` needs: the token's state and claims, the routes' needs, the skew."""
        name = request.match_info["name"]
        if not self._accounts.is_configured(name):
            return OwnResponse(text="No such account.\n", status=HTTPStatus.NOT_FOUND)
        token = self._identity.tokens.get(name)
        answer = {
            "name": name,
            "token": None if token is None else asdict(token.state()),
            "claims": self._claims(name),
            "clock_skew": self._metrics.skews,
            "routes": [route.model_dump(mode="json") for route in self.routes],
        }
        return OwnResponse(text=json.dumps(answer), content_type="application/json")

    def _claims(self, name: str) -> dict[str, str]:
        account = self._identity.tokens.get(name)
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
        token = self._identity.tokens.get(request.match_info["name"])
        if token is None:
            return OwnResponse(text="No such managed account.\n", status=HTTPStatus.NOT_FOUND)
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

    async def _reload(self, _: web.Request) -> web.StreamResponse:
        """Read the configuration again; a bad one is refused with a line per problem."""
        if self.reload is None:
            return OwnResponse(text="No configuration file.\n", status=HTTPStatus.NOT_FOUND)
        try:
            self.reload()
        except ConfigError as error:
            lines = "".join(f"{problem}\n" for problem in error.problems)
            return OwnResponse(text=lines, status=HTTPStatus.UNPROCESSABLE_ENTITY)
        return OwnResponse(text="reloaded\n")


async def _drop_server(_: web.Request, response: web.StreamResponse) -> None:
    """Keep the software's name and version out of the errors it answers itself."""
    response.headers.popall("Server", None)
