"""Getting one token from the login server: the attempts, and what a failure means.

rules/refresh.py decides when to mint. The outcome is a value: a `Token`, or a `NoToken` that says
why there is none and for how long to make no further call.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.problems import Problem
from proxy.retries import RetryRules
from proxy.telemetry.metrics import Metrics
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import LoginServer, Rejected, Throttled, TokenAnswer, Troubled
from proxy.tokens.token import Token

_TRIES: Final = 3  # of one mint, when the login server is in trouble
_REJECTED_PAUSE: Final = 60.0  # seconds between attempts with credentials that were refused
_SKEW_WORTH_A_WARNING: Final = 60.0  # seconds; the leeway most servers give

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoToken:
    """Why no token came, as a sentence without its full stop; `pause` is in seconds."""

    detail: str
    pause: float
    is_rejection: bool  # the login server refuses the credentials

    def problem(self, wait: float) -> Problem:
        """Return the refusal of a request that needs a token; the next attempt is `wait` s away."""
        detail = f"There is no valid token: {self.detail}."
        if self.is_rejection:
            return Problem("token-rejected", detail)
        return Problem("token-unavailable", detail, retry_after=wait)


class Minter:
    """Mints tokens with the credentials of one account."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        retries: RetryRules,
        login_server: LoginServer,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.credentials = credentials
        self._retries = retries
        self._login_server = login_server
        self._clock = clock
        self._metrics = metrics
        self._failures = 0
        self._tried_secret: bytes | None = None

    def apply(self, retries: RetryRules) -> None:
        """Obey new settings from the next attempt on."""
        self._retries = retries

    def use(self, credentials: Credentials, fingerprint: bytes | None) -> bool:
        """Mint with these from now on; return True if an earlier, different secret was tried.

        `fingerprint` is that of the secret, None where it could not be read.
        """
        self.credentials = credentials
        return self._tried_secret is not None and fingerprint not in {None, self._tried_secret}

    async def has_secret_changed(self) -> bool:
        """True if the secret is not the one that was tried last."""
        return await self.credentials.fingerprint() != self._tried_secret

    async def mint(self) -> Token | NoToken:
        """Ask for a token, a few times if the login server is in trouble."""
        self._tried_secret = await self._fingerprint()
        try:
            token = self._token_of(await self._ask())
        except Rejected as error:
            return self._failed(error, _REJECTED_PAUSE, is_rejection=True)
        except Throttled as error:
            return self._failed(error, error.wait)
        except Troubled as error:
            return self._failed(error, None)
        self._failures = 0
        return token

    async def _fingerprint(self) -> bytes | None:
        """Return that of the secret that is in use when it has been read."""
        while True:
            credentials = self.credentials
            fingerprint = await credentials.fingerprint()
            if credentials is self.credentials:
                return fingerprint

    async def _ask(self) -> TokenAnswer:
        for attempt in range(1, _TRIES):
            with suppress(Troubled):
                return await self._login_server.fetch(self.credentials)
            now = self._clock.monotonic()
            await self._clock.sleep_until(now + self._retries.after_unsent(attempt))
        return await self._login_server.fetch(self.credentials)

    def _token_of(self, answer: TokenAnswer) -> Token:
        """Return the token of an answer; raises `Troubled` for one that is unusable."""
        self._note_skew(answer)
        now = self._clock.monotonic()
        token = Token.of(answer, now)
        if token.expires_at <= now:
            raise Troubled("the login server's token had expired when it came")
        return token

    def _failed(
        self, error: Exception, pause: float | None, *, is_rejection: bool = False
    ) -> NoToken:
        """Return the failure; a pause that no server named grows with failures in a row."""
        self._failures += 1
        backoff = self._retries.after_refusals(self._failures)
        return NoToken(detail=str(error), pause=pause or backoff, is_rejection=is_rejection)

    def _note_skew(self, answer: TokenAnswer) -> None:
        if answer.server_time is None:
            return
        skew = answer.server_time - self._clock.wall()
        self._metrics.servers.clock_skew("login", skew)
        if abs(skew) > _SKEW_WORTH_A_WARNING:
            _log.warning("the login server's clock differs from ours", seconds=round(skew, 1))
