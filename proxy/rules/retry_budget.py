"""How many requests an account may send again: a share of what it sends.

A budget keeps an API in trouble from getting more traffic than a healthy one (the "retry quota" of
the AWS SDKs). `now` is an argument, in monotonic seconds.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from proxy.rules.tally import RecentCount


@dataclass(slots=True)
class RetryBudget:
    """How many re-sends an account may still make, over a sliding window of a minute."""

    FLOOR: ClassVar = 3

    _sends: RecentCount = field(default_factory=RecentCount)
    _retries: RecentCount = field(default_factory=RecentCount)

    def count_send(self, now: float) -> None:
        """Note that a request left for the API."""
        self._sends.add(now)

    def take(self, now: float, share: float) -> bool:
        """Spend one re-send; False when `share` of the sends (at least `FLOOR`) is used up."""
        allowed = max(self.FLOOR, share * self._sends.total(now))
        if self._retries.total(now) + 1 > allowed:
            return False
        self._retries.add(now)
        return True
