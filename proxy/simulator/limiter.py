"""The pace the stand-in enforces: arrivals of one account judged in order, given their times.

No I/O and no clock. The rule is the generic cell rate algorithm (ITU-T I.371): arrival k is
accepted when, for every arrival j accepted before it,

    arrival k - arrival j >= (k - j) x interval - tolerance

so a late arrival does not allow a burst later, and the tolerance cannot be used twice. A refused
arrival does not move the pace, and starts the pause that its Retry-After asks for.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

_CLOCK_GRAIN = 1e-6
"""Seconds below which a remainder is the rounding of a float, not a wait."""
_UNLIMITED = 1e9
"""Arrivals in a window that no client reaches; the shortest intervals would make it infinite."""


class Reason(Enum):
    """Why an arrival was refused. Of several that hold, the first in this order is named."""

    EATEN = "eaten"
    """Another client used up the account's quota."""
    STORM = "storm"
    """It came before an earlier Retry-After had passed."""
    EARLY = "early"
    """It came ahead of the pace."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The arrival counts, and the pace moves on."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The arrival gets a 429."""

    reason: Reason
    retry_after: int


Decision = Accepted | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The rule in force, in seconds."""

    interval: float
    tolerance: float
    retry_after: float
    hold: float = 0
    """From an account's first arrival on, all are refused for so long."""

    def most_accepted(self, seconds: float) -> int:
        """Return an upper bound of the arrivals that are accepted within so many seconds."""
        longest = seconds + self.tolerance + _CLOCK_GRAIN
        return math.floor(min(longest / self.interval, _UNLIMITED)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPace:
    """What is remembered of one account, as monotonic times."""

    due: float = -math.inf
    pause_until: float = -math.inf
    eaten_until: float = -math.inf


def judge(state: AccountPace, now: float, pace: Pace) -> tuple[AccountPace, Decision]:
    """Judge one arrival. `now` must not be earlier than that of the arrival judged before."""
    paused_until = max(state.pause_until, state.eaten_until)
    if now < state.eaten_until:
        return _refuse(state, now, paused_until, Reason.EATEN)
    if now < state.pause_until:
        return _refuse(state, now, paused_until, Reason.STORM)
    if now < state.due - pace.tolerance - _CLOCK_GRAIN:
        return _refuse(state, now, max(state.due, now + pace.retry_after), Reason.EARLY)
    return replace(state, due=max(state.due, now) + pace.interval), Accepted()


def _refuse(
    state: AccountPace, now: float, until: float, reason: Reason
) -> tuple[AccountPace, Refused]:
    seconds = max(1, math.ceil(until - now - _CLOCK_GRAIN))
    # A storm does not make the pause longer: rounding up again and again would.
    starts_pause = reason is not Reason.STORM and state.pause_until < until
    pause_until = now + seconds if starts_pause else state.pause_until
    return replace(state, pause_until=pause_until), Refused(reason, seconds)


class Limiter:
    """One pace per account, whichever token, path or method an arrival has."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._states: dict[str, AccountPace] = {}

    def judge(self, account: str, now: float) -> Decision:
        first = AccountPace(eaten_until=now + self._pace.hold)
        state, decision = judge(self._states.get(account, first), now, self._pace)
        self._states[account] = state
        return decision

    def eat(self, account: str, *, until: float) -> None:
        """Refuse every arrival of the account up to `until`, telling it the time left."""
        self._states[account] = replace(self._states.get(account, AccountPace()), eaten_until=until)

    def reset(self) -> None:
        self._states.clear()
