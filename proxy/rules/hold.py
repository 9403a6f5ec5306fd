"""Holds: the time in which an account must send nothing because the API refused it with 429.

Theory of operation. An account is in one of three phases:

    open     nothing keeps it back
    held     it sends nothing before `hold.until`; then one request, the probe, goes first
    probing  the probe is under way, and all others wait for its answer

    | event                        | open | held    | probing |
    | a slot is granted            | open | probing |         |
    | a 429, which may prolong it  | held | held    | probing |
    | the probe is accepted        |      |         | open, unless the hold was prolonged: held |
    | the probe is refused or lost |      |         | held    |

Invariants: a longer hold is never shortened. Only the answer to a probe, after the hold, opens the
account again. `now` is always an argument, in monotonic seconds.
"""

from dataclasses import dataclass, replace
from math import inf


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold of one account: since and until when (monotonic seconds).

    If it was over for a while before it was renewed, `since` is later by that while. `refusals`
    counts the refusals in a row that named no usable time: the wait grows with it where the API
    does not say how long.
    """

    since: float
    until: float
    refusals: int = 0

    def remaining(self, now: float) -> float:
        """Return the seconds left, 0 when only the probe's answer is awaited."""
        return max(0.0, self.until - now)

    def kept(self, now: float) -> float:
        """Return the seconds kept so far, without the wait for the probe and its answer."""
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


@dataclass(frozen=True, slots=True)
class HoldState:
    """The phase of an account, and the seconds it has spent in holds that are over."""

    hold: Hold | None = None  # None: open
    is_probing: bool = False
    past_seconds: float = 0.0

    def opens_at(self, now: float) -> float:
        """Return when a slot may be granted; `inf` while the probe's answer must come first."""
        if self.hold is None:
            return now
        return inf if self.is_probing else self.hold.until

    def may_leave(self, now: float, *, is_probe: bool) -> bool:
        """True if a request with a slot may leave: always if open, the probe after the hold."""
        return self.hold is None or (is_probe and self.hold.until <= now)

    def remaining(self, now: float) -> float:
        """Return the seconds until the hold ends."""
        return self.hold.remaining(now) if self.hold else 0.0

    def held_seconds(self, now: float) -> float:
        """Return the seconds on hold so far, those of the present hold included."""
        return self.past_seconds + (self.hold.kept(now) if self.hold else 0.0)

    def granted(self) -> "HoldState":
        """Return the state after a slot was granted: on hold, it is the probe's."""
        return self if self.hold is None else replace(self, is_probing=True)

    def refused(self, *, now: float, until: float, refusals: int = 0) -> "HoldState":
        """Return the state after the API, or another replica, asked for silence until `until`."""
        return replace(self, hold=hold_after(self.hold, now=now, until=until, refusals=refusals))

    def refusals_after(self, *, is_probe: bool) -> int:
        """Return the refusals in a row with one more that names no time.

        A request sent before the hold, or beside the probe, may be refused too: that is no further
        failure in a row.
        """
        return 1 if self.hold is None else self.hold.refusals + is_probe

    def probe_ended(self, now: float, *, accepted: bool) -> "HoldState":
        """Return the state after the probe was answered, refused or lost."""
        if accepted and self.hold is not None and self.hold.until <= now:
            return HoldState(past_seconds=self.held_seconds(now))
        return replace(self, is_probing=False)
