"""The login side on HTTP: the token endpoint and the keys its JWTs verify with.

`login` decides who may log in; this file reads the request, mints, and answers.
"""

import asyncio
import secrets
from collections import Counter

from aiohttp import hdrs, web

from proxy.simulator import errors
from proxy.simulator.api import Clocks
from proxy.simulator.errors import LoginError
from proxy.simulator.grants import Grants
from proxy.simulator.login import LoggedIn, log_in
from proxy.simulator.settings import SimulatorSettings
from proxy.simulator.tokens import Mint, TokenBook

_FORM = "application/x-www-form-urlencoded"
_NOT_STORED = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""RFC 6749 section 5.1 asks for both."""


class LoginServer:
    """Handler of `POST /oauth/token` and of the key set."""

    def __init__(
        self, settings: SimulatorSettings, grants: Grants, tokens: TokenBook, clocks: Clocks
    ) -> None:
        self.latency = 0.0
        """Seconds every token answer is held back after it was decided."""
        self.throttled = 0
        """How many of the next token requests are refused as too many."""
        self.minted: Counter[str] = Counter()
        self._settings = settings
        self._grants = grants
        self._tokens = tokens
        self._clocks = clocks

    async def issue_token(self, request: web.Request) -> web.Response:
        result = await self._log_in(request)
        # What is minted is decided here, before any wait: the scopes are those of this moment.
        response = self._refuse(result) if isinstance(result, LoginError) else self._mint(result)
        if self.latency > 0:
            await asyncio.sleep(self.latency)
        if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def show_keys(self, _request: web.Request) -> web.Response:
        return web.json_response(self._tokens.key.key_set())

    async def _log_in(self, request: web.Request) -> LoggedIn | LoginError:
        if self.throttled > 0:
            self.throttled -= 1
            return errors.LOGIN_THROTTLED
        has_body = bool(request.content_length) or not request.query_string
        if has_body and request.content_type != _FORM:
            return errors.invalid_login(f"the body must be {_FORM}")
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        try:
            body = (await request.read()).decode()
        except UnicodeDecodeError:
            return errors.invalid_login("the body must be UTF-8")
        return log_in(
            authorization, body, self._settings.find_client, query=request.rel_url.raw_query_string
        )

    def _mint(self, login: LoggedIn) -> web.Response:
        scopes = self._grants.held(login.client_id, self._clocks.monotonic())
        order = Mint(
            client_id=login.client_id,
            scopes=scopes,
            now=self._clocks.wall(),
            lifetime=login.spec.token_lifetime,
            token_id=secrets.token_urlsafe(32),
            opaque=login.spec.opaque,
            organization=self._settings.organization,
        )
        answer: dict[str, object] = {
            "access_token": self._tokens.mint(order),
            "token_type": "bearer",
            "expires_in": int(login.spec.token_lifetime),
        }
        if self._settings.answer_scope:
            answer["scope"] = " ".join(sorted(scopes))
        self.minted[login.client_id] += 1
        return web.json_response(answer, headers=_NOT_STORED)

    def _refuse(self, error: LoginError) -> web.Response:
        headers = {**_NOT_STORED, **error.headers}
        return web.json_response(error.body(), status=error.status, headers=headers)
