"""The pace the stand-in enforces: arrivals of one account judged in order, given their times.

No I/O and no clock. The rule is the generic cell rate algorithm (ITU-T I.371): arrival k is
accepted when, for every arrival j accepted before it,

    arrival k - arrival j >= (k - j) x interval - tolerance

so being late never saves up a burst, and the tolerance cannot be used twice. A refused arrival
leaves the pace as it was, and starts the silence its Retry-After asks for.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

_CLOCK_GRAIN = 1e-6
"""Seconds below which a remainder is the rounding of a float, not a wait."""


class Reason(Enum):
    """Why an arrival was refused. Of several that hold, the first in this order is named."""

    EATEN = "eaten"
    """Somebody else used up the account's quota."""
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


Verdict = Accepted | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The rule in force, in seconds."""

    interval: float
    tolerance: float
    retry_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is remembered of one account, as monotonic times."""

    due: float = -math.inf
    quiet_until: float = -math.inf
    eaten_until: float = -math.inf


def judge(line: Line, now: float, pace: Pace) -> tuple[Line, Verdict]:
    """Judge one arrival. `now` must not be earlier than that of the arrival judged before."""
    silent_until = max(line.quiet_until, line.eaten_until)
    if now < line.eaten_until:
        return _refuse(line, now, silent_until, Reason.EATEN)
    if now < line.quiet_until:
        return _refuse(line, now, silent_until, Reason.STORM)
    if now < line.due - pace.tolerance - _CLOCK_GRAIN:
        return _refuse(line, now, max(line.due, now + pace.retry_after), Reason.EARLY)
    return replace(line, due=max(line.due, now) + pace.interval), Accepted()


def _refuse(line: Line, now: float, until: float, reason: Reason) -> tuple[Line, Refused]:
    seconds = max(1, math.ceil(until - now - _CLOCK_GRAIN))
    # A storm does not make the silence longer: rounding up again and again would.
    starts_silence = reason is not Reason.STORM and line.quiet_until < until
    quiet_until = now + seconds if starts_silence else line.quiet_until
    return replace(line, quiet_until=quiet_until), Refused(reason, seconds)


class Limiter:
    """One line per account, whichever token, path or method an arrival has."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._lines: dict[str, Line] = {}

    def judge(self, account: str, now: float) -> Verdict:
        line, verdict = judge(self._lines.get(account, Line()), now, self._pace)
        self._lines[account] = line
        return verdict

    def eat(self, account: str, *, until: float) -> None:
        """Refuse every arrival of the account up to `until`, telling it the time left."""
        self._lines[account] = replace(self._lines.get(account, Line()), eaten_until=until)

    def reset(self) -> None:
        self._lines.clear()
