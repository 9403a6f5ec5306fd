"""The API side on HTTP: stamp an arrival, judge it, answer in the vendor's shapes.

One handler serves every path. What must be judged in the order of arrival (credentials, pace)
happens before the first await; the rest follows once the body is here. The rules are in other
modules.
"""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from aiohttp import hdrs, web

from proxy.simulator import errors
from proxy.simulator.errors import ApiError
from proxy.simulator.exports import KEY_HEADER, Exports, family_of, normalise
from proxy.simulator.ledger import QUOTA_WINDOW, UNATTRIBUTED, Arrival, Ledger
from proxy.simulator.limiter import Limiter, Pace, Refused
from proxy.simulator.resources import WHOAMI, Answer, Ask, answer
from proxy.simulator.settings import SimulatorSettings
from proxy.simulator.tokens import SigningKey, Token, TokenBook

CORRELATION_ID = "ININ-Correlation-Id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Monotonic time paces and stamps, wall time dates tokens; the two are never compared."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The state behind the API, shared with the code that scripts and reports it."""

    ledger: Ledger
    limiter: Limiter
    exports: Exports
    tokens: TokenBook
    allowed_per_minute: int
    """What an answer announces: so much that a client that keeps the pace has some left."""

    @classmethod
    def open(cls, settings: SimulatorSettings, key: SigningKey) -> Self:
        """Open empty books."""
        pace = Pace(
            interval=settings.interval,
            tolerance=settings.tolerance,
            retry_after=settings.retry_after,
            hold=settings.hold,
        )
        return cls(
            ledger=Ledger(settings.ledger_size),
            limiter=Limiter(pace),
            exports=Exports(settings.ledger_size),
            tokens=TokenBook(key, issuer=settings.issuer, audience=settings.audience),
            allowed_per_minute=pace.most_accepted(QUOTA_WINDOW) + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request, as far as its bearer token says."""

    account: str
    credential: Token | ApiError


class ExportApi:
    """Handler of `/api/v2/**`, and of all paths without another handler."""

    def __init__(self, books: Books, clocks: Clocks) -> None:
        self.latency = 0.0
        """Seconds every answer is held back after it was decided."""
        self._books = books
        self._clocks = clocks

    async def handle(self, request: web.Request) -> web.Response:
        at = self._clocks.monotonic()
        caller = self._identify(request.headers.get(hdrs.AUTHORIZATION))
        arrival = self._receive(request, caller, at)
        result = await self._decide(request, caller, arrival)
        arrival.status = result.status
        if self.latency > 0:
            await asyncio.sleep(self.latency)
        response = self._render(result, caller.account)
        if arrival.path == WHOAMI and "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    def _identify(self, authorization: str | None) -> Caller:
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.casefold() != "bearer":
            return Caller(account=UNATTRIBUTED, credential=errors.NO_CREDENTIALS)
        token = self._books.tokens.find(credentials.strip())
        if token is None:
            return Caller(account=UNATTRIBUTED, credential=errors.BAD_CREDENTIALS)
        is_live = token.is_live(self._clocks.wall())
        credential = token if is_live else errors.CREDENTIALS_EXPIRED
        return Caller(account=token.client_id, credential=credential)

    def _receive(self, request: web.Request, caller: Caller, at: float) -> Arrival:
        """Note an arrival, with the limiter's decision if it is one for the limiter."""
        is_paced = family_of(normalise(request.path)) is not None
        is_judged = is_paced and isinstance(caller.credential, Token)
        arrival = Arrival(
            at=at,
            method=request.method,
            path=request.path,
            paced=is_paced,
            decision=self._books.limiter.judge(caller.account, at) if is_judged else None,
        )
        self._books.ledger.note(caller.account, arrival)
        return arrival

    async def _decide(
        self, request: web.Request, caller: Caller, arrival: Arrival
    ) -> Answer | ApiError:
        if isinstance(caller.credential, ApiError):
            return caller.credential
        if isinstance(arrival.decision, Refused):
            return errors.rate_limited(arrival.decision.retry_after)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return errors.TOO_LARGE
        path = normalise(request.path)
        ask = Ask(
            token=caller.credential,
            method=request.method,
            path=path,
            family=family_of(path),
            body=body,
            key_header=request.headers.get(KEY_HEADER),
            new_id=str(uuid.uuid4()),
        )
        return answer(ask, self._books.exports.of(caller.account))

    def _render(self, result: Answer | ApiError, account: str) -> web.Response:
        context_id = str(uuid.uuid4())
        headers = {CORRELATION_ID: context_id, **result.headers}
        if result.status not in {401, 429}:
            headers |= self._quota_headers(account)
        body = result.body(context_id) if isinstance(result, ApiError) else result.body
        if body is None:
            return web.Response(status=result.status, headers=headers)
        return web.json_response(body, status=result.status, headers=headers)

    def _quota_headers(self, account: str) -> dict[str, str]:
        quota = self._books.ledger.quota(account, self._clocks.monotonic())
        return {
            "inin-ratelimit-count": str(quota.used),
            "inin-ratelimit-allowed": str(self._books.allowed_per_minute),
            "inin-ratelimit-reset": str(quota.reset),
        }
