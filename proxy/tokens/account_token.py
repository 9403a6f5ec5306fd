"""The token of one managed account: minted once however many ask, renewed before it is stale.

Theory of operation. Only one task, `TokenKeeper.run`, calls the login server. It sleeps until
`Schedule.next_mint` (rules/refresh.py), mints (minting.py), reports the result to the schedule, and
wakes all waiters. A request never mints: it asks the schedule for a renewal, wakes the task, and
waits for the end of a mint or for its own deadline. So a caller that leaves cancels nothing, and
two hundred simultaneous requests cause one call.

Invariants:
- a token past `expires_at`, on the monotonic clock, is never given out;
- a token the API answered 401 to (`_doubted`) is not given out while another is on its way;
- each end of a mint, good or bad, wakes every waiter, and so does the end of the task;
- nothing is minted before `Schedule.not_before`, not even for an operator.
"""

from collections.abc import Callable
from math import inf

import structlog

from proxy.clock import Clock
from proxy.problems import Problem
from proxy.retries import RetryRules
from proxy.rules.refresh import Reason, Schedule, renew_at
from proxy.rules.state import TokenState
from proxy.settings import Settings
from proxy.telemetry.metrics import Metrics
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import LoginServer
from proxy.tokens.minting import Minter, NoToken
from proxy.tokens.token import Token
from proxy.tokens.waiting import Alarm, MintWaiters

_log = structlog.get_logger(__name__)


class TooSoon(Exception):
    """An operator asks for a token within `min_refresh_interval`; `wait` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("minted too recently")
        self.wait = wait


class TokenKeeper:
    """Keeps the token of one managed account fresh."""

    def __init__(  # noqa: PLR0913 -- what it needs to know, each by name
        self,
        name: str,
        credentials: Credentials,
        settings: Settings,
        *,
        login_server: LoginServer,
        clock: Clock,
        metrics: Metrics,
        random: Callable[[], float],
    ) -> None:
        self.name = name
        self._rules = settings.tokens
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._minter = Minter(
            credentials,
            retries=RetryRules(settings.retry),
            login_server=login_server,
            clock=clock,
            metrics=metrics,
        )
        self._schedule = Schedule(
            min_interval=self._rules.min_refresh_interval,
            window_length=self._rules.propagation_window,
        )
        self._token: Token | None = None
        self._doubted: Token | None = None  # the API answered 401; another is on its way
        self._failure: NoToken | None = None  # of the last mint
        self._waiters = MintWaiters(clock)
        self._alarm = Alarm(clock)

    def __repr__(self) -> str:
        return f"<TokenKeeper {self.name}: {'valid' if self.current() else 'none'}>"

    @property
    def credentials(self) -> Credentials:
        """The account's credentials at the login server."""
        return self._minter.credentials

    def apply(
        self, name: str, credentials: Credentials, settings: Settings, fingerprint: bytes | None
    ) -> bool:
        """Obey new settings from now on, and keep the token; return True if the secret changed.

        `fingerprint` is that of the secret, None if the proxy could not read it. With a new secret
        a token is minted as soon as possible; until then the old one serves.
        """
        self.name = name
        self._rules = settings.tokens
        self._minter.apply(RetryRules(settings.retry))
        self._schedule.apply(
            min_interval=self._rules.min_refresh_interval,
            window_length=self._rules.propagation_window,
        )
        is_other = self._minter.use(credentials, fingerprint)
        if is_other:
            if self.is_rejected:
                self._schedule.allow_now()
            self._schedule.order("operator")
            self._alarm.ring()
        return is_other

    # For requests.

    def current(self) -> Token | None:
        """Return the token if it has not expired."""
        token = self._token
        return token if token is not None and self._clock.monotonic() < token.expires_at else None

    def may_be_sent(self, token: Token) -> bool:
        """True if a token that `usable` returned is still the one to send."""
        return token is self.current() and token is not self._doubted

    async def usable(self, needed: frozenset[str], *, limit: float) -> Token:
        """Return a token for a request that needs these scopes, waiting `limit` seconds at most.

        It waits only when there is no valid token, or for the renewal of a stale or refused one;
        while a scope may still appear, `on_missing_scope` decides. Raises the Problem
        `token-unavailable`, `token-rejected` or `missing-scope`.
        """
        deadline = self._clock.monotonic() + limit
        while True:
            token = self.current()
            if token is None:
                await self._wait_for_token(deadline)
            elif token is self._doubted:
                if not await self._waiters.wait(deadline):
                    raise self._problem()
            elif not token.lacks(needed):
                return token
            elif not await self._wait_for_scopes(token, needed, deadline):
                return token  # as it is: the API shall say no

    async def renewed(self, used: Token, reason: Reason, *, limit: float) -> Token | None:
        """Return a newer token than the one the API refused; None if none comes in time."""
        await self._notice_new_secret()
        current = self.current()
        if current is not None and current is not used:
            return current
        now = self._clock.monotonic()
        if not self._order_renewal(reason, now):
            return None
        if reason == "unauthorized":
            self._doubted = used
        await self._waiters.wait(now + limit)
        current = self.current()
        return current if current is not used else None

    async def refresh(self) -> Token:
        """Mint now because an operator wants it.

        Raises `TooSoon`, or the Problem `token-unavailable` or `token-rejected`: not even an
        operator may ask a login server before the time it named.
        """
        await self._notice_new_secret()
        now, before = self._clock.monotonic(), self._token
        if not self._order_renewal("operator", now):
            raise TooSoon(self._schedule.not_before - now) if not self._failure else self._problem()
        await self._waiters.wait(inf)
        token = self.current()
        if token is None or token is before:
            raise self._problem()
        return token

    def state(self) -> TokenState:
        """Return the state of the token now."""
        token, now = self.current(), self._clock.monotonic()
        return TokenState(
            expires_in=None if token is None else token.expires_at - now,
            scopes=None if token is None or token.scopes is None else sorted(token.scopes),
            missing=sorted(self._schedule.missing),
            next_refresh_in=self._schedule.next_in(now),
            issued_at=None if token is None else token.issued_at,
            rejected=self.is_rejected,
        )

    @property
    def missing(self) -> frozenset[str]:
        """Scopes that requests needed and the last token lacked."""
        return self._schedule.missing

    @property
    def is_scope_overdue(self) -> bool:
        """True if a scope is missing that is no longer expected to appear."""
        return bool(self._schedule.missing) and not self._schedule.is_window_open

    @property
    def is_rejected(self) -> bool:
        """True if the login server refused the credentials the last time."""
        return self._failure is not None and self._failure.is_rejection

    # How requests wait.

    async def _wait_for_token(self, deadline: float) -> None:
        """Wait for a token that is on its way; raises a Problem when none comes in time."""
        await self._notice_new_secret()
        if self.current() is not None:
            return
        now = self._clock.monotonic()
        if not self._schedule.is_due(now) and (
            self._failure or not self._schedule.comes_before(deadline)
        ):
            raise self._problem()
        if not await self._waiters.wait(deadline) and self.current() is None:
            raise self._problem()

    async def _wait_for_scopes(self, token: Token, needed: frozenset[str], deadline: float) -> bool:
        """Wait for a token with more scopes; False if the request should use the present one.

        Raises the Problem `missing-scope` when the caller should not wait.
        """
        await self._notice_new_secret()
        if self.current() is not token:
            return True
        now = self._clock.monotonic()
        self._schedule.want(token.lacks(needed), now)
        self._alarm.ring()
        if self._schedule.is_due(now):
            await self._waiters.wait(deadline)
            if self.current() is not token:
                return True
        if self._rules.on_missing_scope == "forward":
            return False
        waits = self._rules.on_missing_scope == "wait" and self._schedule.is_window_open
        if waits and self._schedule.comes_before(deadline) and await self._waiters.wait(deadline):
            return True
        now, is_open = self._clock.monotonic(), self._schedule.is_window_open
        next_in = self._schedule.next_in(now) if is_open else None
        raise token.missing_scope(needed, next_refresh_in=next_in)

    def _order_renewal(self, reason: Reason, now: float) -> bool:
        self._alarm.ring()
        return self._schedule.order_renewal(reason, now)

    async def _notice_new_secret(self) -> None:
        """Allow a mint at once if the login server refused a secret that has changed since."""
        if self.is_rejected and await self._minter.has_secret_changed() and self.is_rejected:
            self._schedule.allow_now()
            self._alarm.ring()

    # The task.

    async def run(self) -> None:
        """Keep the token fresh until cancelled."""
        try:
            while True:
                at, reason = self._schedule.next_mint()
                if at > self._clock.monotonic():
                    await self._alarm.sleep_until(at)
                else:
                    await self._mint(reason)
                    self._end_mint(has_minted=True)
        finally:
            self._end_mint(has_minted=False)

    def _end_mint(self, *, has_minted: bool) -> None:
        self._doubted = None
        self._waiters.wake(has_minted=has_minted)

    async def _mint(self, reason: Reason) -> None:
        """Mint, and note the outcome."""
        self._schedule.begin(self._clock.monotonic())
        outcome = await self._minter.mint()
        if isinstance(outcome, Token):
            self._token, self._failure = outcome, None
            due = renew_at(
                received_at=outcome.received_at,
                expires_at=outcome.expires_at,
                margin=self._rules.refresh_margin,
                jitter=self._random(),
            )
            self._schedule.succeed(outcome.received_at, renew_at=due, held=outcome.scopes)
            self._metrics.token_refreshed(self.name, reason, "ok")
        else:
            self._failure = outcome
            self._schedule.fail(self._clock.monotonic(), pause=outcome.pause)
            self._metrics.token_refreshed(self.name, reason, "error")
            _log.warning(
                "no new token",
                account=self.name,
                reason=outcome.detail,
                next_try_in=round(outcome.pause, 1),
            )

    # Results for callers and operators.

    def _problem(self) -> Problem:
        wait = max(1.0, self._schedule.not_before - self._clock.monotonic())
        if self._failure is None:
            return Problem("token-unavailable", "There is no valid token yet.", retry_after=wait)
        return self._failure.problem(wait)
