"""How many requests an account may send again: a share of what it sends.

A budget keeps an API in trouble from getting more traffic than a healthy one (the "retry quota" of
the AWS SDKs). `now` is an argument, in monotonic seconds.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(slots=True)
class _Window:
    """A count over the last `SECONDS`, in steps of `STEP` seconds."""

    SECONDS: ClassVar = 60.0
    STEP: ClassVar = 2.0

    _steps: deque[tuple[int, int]] = field(default_factory=deque)
    _total: int = 0

    def add(self, now: float) -> None:
        step = int(now // self.STEP)
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1] = (step, self._steps[-1][1] + 1)
        else:
            self._forget(step)
            self._steps.append((step, 1))
        self._total += 1

    def total(self, now: float) -> int:
        self._forget(int(now // self.STEP))
        return self._total

    def _forget(self, step: int) -> None:
        oldest = step - int(self.SECONDS // self.STEP)
        while self._steps and self._steps[0][0] < oldest:
            self._total -= self._steps.popleft()[1]


@dataclass(slots=True)
class RetryBudget:
    """How many re-sends an account may still make, over a sliding window of a minute."""

    FLOOR: ClassVar = 3

    _sends: _Window = field(default_factory=_Window)
    _retries: _Window = field(default_factory=_Window)

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
