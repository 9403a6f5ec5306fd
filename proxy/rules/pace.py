"""When the next request of an account may leave: pace, hold and retry budget.

Arithmetic on monotonic seconds only: `now` is always an argument, nothing here waits.

- Pace: after a send of cost c, the next send of the same line is due c x interval later. The
  interval is not stored, so a changed setting governs whoever sends next.
- Hold: a silence the API asked for with 429. A longer hold is never shortened. When it is over
  one request, the probe, goes first; only its answer opens the account again.
- Budget: re-sends may be only a share of what an account sends (the "retry quota" of the AWS
  SDKs), so that an API in trouble does not get more traffic than a healthy one.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Pace:
    """The last send of a line: when it left (monotonic seconds) and what it cost (intervals)."""

    sent_at: float
    cost: float = 1.0

    def due(self, interval: float) -> float:
        """Return the monotonic time from which the next send is allowed."""
        return self.sent_at + self.cost * interval


@dataclass(frozen=True, slots=True)
class Hold:
    """A silence of one account: since and until when (monotonic seconds).

    Where it was over for a while before it was renewed, `since` is later by that while.
    `refusals` counts the refusals in a row that named no usable time: it is what the wait grows
    with where the API does not say how long.
    """

    since: float
    until: float
    refusals: int = 0

    def remaining(self, now: float) -> float:
        """Return the seconds of silence left, 0 when only the probe's answer is awaited."""
        return max(0.0, self.until - now)

    def kept(self, now: float) -> float:
        """Return the seconds of silence so far; waiting for the probe and its answer is none."""
        return min(now, self.until) - self.since


def hold_after(current: Hold | None, *, now: float, until: float, refusals: int) -> Hold:
    """Return the hold after a refusal at `now` that asks for silence until `until`."""
    until = max(now, until)
    if current is None:
        return Hold(since=now, until=until, refusals=refusals)
    return Hold(
        since=current.since + max(0.0, now - current.until),
        until=max(current.until, until),
        refusals=max(current.refusals, refusals),
    )


def predicted_wait(*, now: float, due: float, cost_ahead: float, interval: float) -> float:
    """Return the seconds until a newcomer would be sent.

    `due` is when the line may send next (its pace, or a hold if that is longer), `cost_ahead` the
    summed cost, in intervals, of everybody who goes before the newcomer.
    """
    return max(0.0, due - now) + cost_ahead * interval


def return_after(excess: float, *, jitter: float) -> int:
    """Return the whole seconds after which a refused caller should come back.

    `excess` is by how many seconds the predicted wait is too long; `jitter` in [0, 1) spreads the
    returns over up to a quarter more, or one second where that is longer.
    """
    seconds = max(1, ceil(excess))
    spread = max(1, seconds // 4)
    return seconds + int(jitter * (spread + 1))


@dataclass(slots=True)
class _Window:
    """A count over the last `SECONDS`, in steps of `STEP` seconds."""

    SECONDS: ClassVar = 60.0
    STEP: ClassVar = 2.0

    _steps: deque[tuple[int, int]] = field(default_factory=deque)
    _total: int = 0

    def add(self, now: float) -> None:
        step = int(now // self.STEP)
        self._forget(step)
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1] = (step, self._steps[-1][1] + 1)
        else:
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
