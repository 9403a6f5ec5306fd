"""What all accounts of one proxy have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from proxy.clock import Clock
from proxy.pacing.turns import Alone, Turns
from proxy.retries import RetryRules
from proxy.settings import Pacing
from proxy.telemetry.metrics import Metrics


@dataclass(slots=True, kw_only=True)
class PacingContext:
    """What all accounts share; a reload replaces `pacing` and `retry_rules`."""

    clock: Clock
    metrics: Metrics
    random: Callable[[], float]
    pacing: Pacing
    retry_rules: RetryRules
    started_at: float
    is_draining: Callable[[], bool]
    closes_at: Callable[[], float] = lambda: inf  # when whatever waits then is refused; monotonic
    turns: Turns = field(default_factory=Alone)
    arrivals: int = 0

    def next_arrival(self) -> int:
        """Return the number of a request in order of arrival."""
        self.arrivals += 1
        return self.arrivals
