"""One token per managed account: fetched once however many ask, renewed before it is stale.

Each account has one task, `TokenKeeper.run`, which alone talks to the token endpoint; requests ask
it and wait for what it finds, so a caller who goes away cancels nothing. When it mints is decided
in rules/refresh.py: at most every `min_refresh_interval`, and only for a reason.

A token's life is counted on the monotonic clock from its receipt; a token past it is never used.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.problems import Problem
from proxy.retries import RetryRules
from proxy.rules.claims import held_scopes, read_claims
from proxy.rules.refresh import Reason, Schedule, renew_at
from proxy.rules.state import TokenState
from proxy.settings import Settings, Tokens
from proxy.telemetry.metrics import Metrics
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import Issued, Rejected, Throttled, TokenEndpoint, Troubled

__all__ = ["Reason", "Token", "TokenKeeper", "TooSoon"]

_TRIES: Final = 3  # of one fetch, when the login server is in trouble
_REJECTED_PAUSE: Final = 60.0  # seconds between tries with credentials that were refused
_SKEW_WORTH_A_WARNING: Final = 60.0  # seconds; the leeway most servers give

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token in use; times are monotonic seconds, `issued_at` is the server's wall time."""

    value: str = field(repr=False)
    scopes: frozenset[str] | None
    received_at: float
    expires_at: float
    issued_at: float | None

    @classmethod
    def of(cls, issued: Issued, now: float) -> "Token":
        """Return the token received `now`; an `exp` is compared with its server's own `Date`."""
        claims = read_claims(issued.value)
        expires = None if claims is None else claims.number("exp")
        issued_at = None if claims is None else claims.number("iat")
        lifetime = issued.lifetime
        if expires is not None and issued.server_time is not None:
            lifetime = min(lifetime, expires - issued.server_time)
        return cls(
            value=issued.value,
            scopes=held_scopes(claims, issued.scope),
            received_at=now,
            expires_at=now + lifetime,
            issued_at=issued.server_time if issued_at is None else issued_at,
        )

    def lacks(self, needed: frozenset[str]) -> frozenset[str]:
        """Return which of the needed scopes it is known not to carry."""
        return frozenset() if self.scopes is None else needed - self.scopes


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why there is no token: a sentence, and if the login server refuses the credentials."""

    detail: str
    is_rejection: bool = False


class TooSoon(Exception):
    """An operator asks for a token within `min_refresh_interval`; `wait` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("minted too recently")
        self.wait = wait


class TokenKeeper:
    """The token of one managed account."""

    def __init__(  # noqa: PLR0913 -- what it needs to know, each by name
        self,
        name: str,
        credentials: Credentials,
        *,
        rules: Tokens,
        patience: RetryRules,
        endpoint: TokenEndpoint,
        clock: Clock,
        metrics: Metrics,
        random: Callable[[], float],
    ) -> None:
        self.name = name
        self.credentials = credentials
        self.rules = rules
        self._patience = patience
        self._endpoint = endpoint
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._schedule = Schedule(
            min_interval=rules.min_refresh_interval, window_length=rules.propagation_window
        )
        self._token: Token | None = None
        self._doubted: Token | None = None  # the API answered 401; another is on its way
        self._trouble: _Trouble | None = None
        self._failures = 0
        self._tried_secret: bytes | None = None
        self._waiters: set[asyncio.Future[bool]] = set()
        self._woken = asyncio.Event()

    def __repr__(self) -> str:
        return f"<TokenKeeper {self.name}: {'valid' if self.current() else 'none'}>"

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on; the token is kept."""
        self.rules = settings.tokens
        self._patience = RetryRules(settings.retry)
        self._schedule.min_interval = settings.tokens.min_refresh_interval
        self._schedule.window_length = settings.tokens.propagation_window

    def use(self, credentials: Credentials) -> bool:
        """Mint with these credentials from now on; tell whether the secret is another.

        Then a token is minted as soon as that may be, and the one in use serves until it has come.
        """
        self.credentials = credentials
        is_other = self._tried_secret is not None and self.credentials.fingerprint() not in {
            None,
            self._tried_secret,
        }
        if is_other:
            self._notice_new_secret()
            self._schedule.ask("operator")
            self._woken.set()
        return is_other

    # What requests ask.

    def current(self) -> Token | None:
        """Return the token if it has not expired."""
        token = self._token
        return token if token is not None and self._clock.monotonic() < token.expires_at else None

    def may_be_sent(self, token: Token) -> bool:
        """Tell whether a token that `usable` gave is still the one to send."""
        return token is self.current() and token is not self._doubted

    async def usable(self, needed: frozenset[str], *, limit: float) -> Token:
        """Return a token for a request that needs these scopes, waiting `limit` seconds at most.

        Waits only when there is no valid token, or for the renewal that a stale or refused one
        gets; while a scope may still appear, `on_missing_scope` decides. Raises the Problem
        `token-unavailable`, `token-rejected` or `missing-scope`.
        """
        deadline = self._clock.monotonic() + limit
        while True:
            token = self.current()
            if token is None:
                await self._wait_for_token(deadline)
            elif token is self._doubted:
                if not await self._wait(deadline):
                    raise self._problem()
            elif not token.lacks(needed):
                return token
            elif not await self._wait_for_scopes(token, needed, deadline):
                return token  # as it is: the API shall say no

    async def renewed(self, used: Token, reason: Reason, *, limit: float) -> Token | None:
        """Return another token than the one the API refused; None if none may be had now."""
        current = self.current()
        if current is not None and current is not used:
            return current
        now = self._clock.monotonic()
        if not self._may_renew(reason, now):
            return None
        if reason == "unauthorized":
            self._doubted = used
        await self._wait(now + limit)
        current = self.current()
        return current if current is not used else None

    async def refresh(self) -> Token:
        """Mint now because an operator wants it.

        Raises `TooSoon`, or the Problem `token-unavailable` or `token-rejected`: the silence a
        login server asks for is kept whoever asks.
        """
        now, before = self._clock.monotonic(), self._token
        if not self._may_renew("operator", now):
            raise TooSoon(self._schedule.not_before - now) if not self._trouble else self._problem()
        await self._wait(inf)
        token = self.current()
        if token is None or token is before:
            raise self._problem()
        return token

    def state(self) -> TokenState:
        """Return what is known of the token now."""
        token, now = self.current(), self._clock.monotonic()
        return TokenState(
            expires_in=None if token is None else token.expires_at - now,
            scopes=None if token is None or token.scopes is None else sorted(token.scopes),
            missing=sorted(self._schedule.missing),
            next_refresh_in=self._next_refresh_in(),
            issued_at=None if token is None else token.issued_at,
            rejected=self._trouble is not None and self._trouble.is_rejection,
        )

    # How they wait.

    async def _wait_for_token(self, deadline: float) -> None:
        """Wait for a token that is on its way; raises a Problem when none comes in time."""
        self._notice_new_secret()
        now = self._clock.monotonic()
        if not self._schedule.is_due(now) and (self._trouble or not self._comes_before(deadline)):
            raise self._problem()
        if not await self._wait(deadline) and self.current() is None:
            raise self._problem()

    async def _wait_for_scopes(self, token: Token, needed: frozenset[str], deadline: float) -> bool:
        """Wait for a token with more scopes; False when this one is to be used as it is.

        Raises the Problem `missing-scope` when the caller should not wait.
        """
        now = self._clock.monotonic()
        self._notice_new_secret()
        self._schedule.want(token.lacks(needed), now)
        self._woken.set()
        if self._schedule.is_due(now):
            await self._wait(deadline)
            if self.current() is not token:
                return True
        if self.rules.on_missing_scope == "forward":
            return False
        waits = self.rules.on_missing_scope == "wait" and self._schedule.is_window_open
        if waits and self._comes_before(deadline) and await self._wait(deadline):
            return True
        raise self._missing_scope(token, needed)

    def _may_renew(self, reason: Reason, now: float) -> bool:
        self._notice_new_secret()
        self._woken.set()
        return self._schedule.may_renew(reason, now)

    def _comes_before(self, deadline: float) -> bool:
        return self._schedule.next_mint()[0] < deadline

    def _notice_new_secret(self) -> None:
        """Let credentials be tried at once that are not those the login server refused."""
        if self._trouble is None or not self._trouble.is_rejection:
            return
        if self.credentials.fingerprint() != self._tried_secret:
            self._schedule.end_silence()
            self._woken.set()

    async def _wait(self, deadline: float) -> bool:
        """Wait for the end of a fetch; False when the deadline came first."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        timer = None
        if deadline < inf:
            timer = self._clock.call_at(deadline, lambda: _settle(waiter, fetched=False))
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()

    # The task.

    async def run(self) -> None:
        """Keep the token fresh until cancelled."""
        try:
            while True:
                at, reason = self._schedule.next_mint()
                if at > self._clock.monotonic():
                    await self._sleep_until(at)
                else:
                    await self._mint(reason)
                    self._settle_all(fetched=True)
        finally:
            self._settle_all(fetched=False)

    def _settle_all(self, *, fetched: bool) -> None:
        self._doubted = None
        for waiter in self._waiters:
            _settle(waiter, fetched=fetched)

    async def _sleep_until(self, when: float) -> None:
        """Sleep until then, or until somebody has asked for something."""
        self._woken.clear()
        timer = self._clock.call_at(when, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    async def _mint(self, reason: Reason) -> None:
        """Fetch a token, and take in what came."""
        self._schedule.begin(self._clock.monotonic())
        self._tried_secret = self.credentials.fingerprint()
        try:
            self._take(reason, await self._fetch())
        except Rejected as error:
            self._fail(reason, _Trouble(f"{error}", is_rejection=True), _REJECTED_PAUSE)
        except Throttled as error:
            pause = error.wait or self._patience.after_refusals(self._failures + 1)
            self._fail(reason, _Trouble(f"{error}"), pause)
        except Troubled as error:
            pause = self._patience.after_refusals(self._failures + 1)
            self._fail(reason, _Trouble(f"{error}"), pause)

    async def _fetch(self) -> Issued:
        """Ask the login server, a few times if it is in trouble."""
        for attempt in range(1, _TRIES):
            with suppress(Troubled):
                return await self._endpoint.fetch(self.credentials)
            now = self._clock.monotonic()
            await self._clock.sleep_until(now + self._patience.after_unsent(attempt))
        return await self._endpoint.fetch(self.credentials)

    def _take(self, reason: Reason, issued: Issued) -> None:
        """Use a token from now on; raises `Troubled` for one that is of no use."""
        self._note_skew(issued)
        now = self._clock.monotonic()
        token = Token.of(issued, now)
        if token.expires_at <= now:
            raise Troubled("the login server's token had expired when it came")
        self._token = token
        self._trouble = None
        self._failures = 0
        due = renew_at(
            received_at=now,
            expires_at=token.expires_at,
            margin=self.rules.refresh_margin,
            jitter=self._random(),
        )
        self._schedule.succeed(now, renew_at=due, held=token.scopes)
        self._metrics.token_refreshed(self.name, reason, "ok")

    def _fail(self, reason: Reason, trouble: _Trouble, pause: float) -> None:
        self._failures += 1
        self._trouble = trouble
        self._schedule.fail(self._clock.monotonic(), pause=pause)
        self._metrics.token_refreshed(self.name, reason, "error")
        _log.warning(
            "no new token", account=self.name, reason=trouble.detail, next_try_in=round(pause, 1)
        )

    def _note_skew(self, issued: Issued) -> None:
        if issued.server_time is None:
            return
        skew = issued.server_time - self._clock.wall()
        self._metrics.clock_skew("login", skew)
        if abs(skew) > _SKEW_WORTH_A_WARNING:
            _log.warning("the login server's clock differs from ours", seconds=round(skew, 1))

    # What is said.

    def _next_refresh_in(self) -> float:
        return max(0.0, self._schedule.next_mint()[0] - self._clock.monotonic())

    def _problem(self) -> Problem:
        wait = max(1.0, self._schedule.not_before - self._clock.monotonic())
        if self._trouble is None:
            return Problem("token-unavailable", "There is no valid token yet.", retry_after=wait)
        detail = f"There is no valid token: {self._trouble.detail}."
        if self._trouble.is_rejection:
            return Problem("token-rejected", detail)
        return Problem("token-unavailable", detail, retry_after=wait)

    def _missing_scope(self, token: Token, needed: frozenset[str]) -> Problem:
        missing = token.lacks(needed)
        next_in = self._next_refresh_in() if self._schedule.is_window_open else None
        return Problem(
            "missing-scope",
            f"The account's token lacks {', '.join(sorted(missing))}."
            " If it was granted a moment ago it may take some minutes to appear in new tokens.",
            retry_after=next_in,
            fields={
                "required": sorted(needed),
                "held": sorted(needed - missing),
                "token_issued_at": token.issued_at,
                "next_refresh_in": None if next_in is None else round(next_in, 1),
            },
        )


def _settle(waiter: asyncio.Future[bool], *, fetched: bool) -> None:
    if not waiter.done():
        waiter.set_result(fetched)
