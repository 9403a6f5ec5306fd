"""How often and how soon a request is sent again: the strategies of tenacity, on our own clock.

Nothing here sleeps. A refused request waits at the front of its queue (pacing/), an unsent one
waits on the injected clock (forwarding/sending.py); both ask here whether to wait, and how long.
"""

from dataclasses import dataclass

from tenacity import RetryCallState, stop_after_attempt, wait_exponential_jitter, wait_random
from tenacity.asyncio import AsyncRetrying

from proxy.settings import Retry


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The configured bounds on sending again, as questions."""

    settings: Retry

    def may_send_again(self, *, attempts: int, elapsed: float) -> bool:
        """True if another send fits the bounds, `elapsed` seconds after the first one."""
        if elapsed >= self.settings.max_elapsed:
            return False
        return not stop_after_attempt(self.settings.max_attempts)(_state(attempts))

    def after_refusals(self, refusals: int) -> float:
        """Return the seconds of hold after the n-th refusal in a row that named no time."""
        wait = wait_exponential_jitter(
            multiplier=self.settings.initial_backoff,
            max=self.settings.max_backoff,
            jitter=self.settings.initial_backoff,
        )
        return float(wait(_state(refusals)))

    def after_unsent(self, attempts: int) -> float:
        """Return the seconds before the next attempt, after n attempts that never left.

        Equal jitter: half of the exponential step is fixed, half random. At the default settings
        four attempts span at least 1.75 s.
        """
        exponential = wait_exponential_jitter(
            multiplier=self.settings.initial_backoff, max=self.settings.max_backoff, jitter=0
        )
        step = float(exponential(_state(attempts)))
        return step / 2 + float(wait_random(0, step / 2)(_state(attempts)))


def _state(attempts: int) -> RetryCallState:
    state = RetryCallState(AsyncRetrying(), fn=None, args=(), kwargs={})
    state.attempt_number = max(1, attempts)
    return state
