"""Holds: the time in which an account, or one route of it, must send nothing.

Theory of operation. An account, or a route of it, is in one of three phases:

    open     no hold
    held     it sends nothing before `hold.until`; then one request, the probe, goes first
    probing  probes are under way, and all others wait for an answer to one of them

The first probe has `PROBE_SECONDS` to be answered. If no answer has come by then, further probes
go, up to `MOST_PROBES` at once, until the first answer opens.

    | event                        | open | held    | probing                                |
    | a slot is granted            | open | probing | probing                                |
    | a 429 to a probe             |      |         | held                                   |
    | any other 429                | held | held    | probing, the hold perhaps prolonged    |
    | a probe is accepted          |      |         | open, unless the hold was prolonged    |
    | the last probe is lost       |      |         | held                                   |

The API may name a longer wait than the proxy obeys without a probe (the clamp).
`until` is the clamped end: after it a probe goes. `named_until` is what the API named: callers are
told to wait until then.

Invariants: neither end ever moves back. Only the answer to a probe, after the hold, opens again.
`now` is always an argument, in monotonic seconds.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Final

PROBE_SECONDS: Final = 2.0  # for the first probe alone; an ordinary answer takes less
MOST_PROBES: Final = 2  # so that an API that still refuses is asked once more, and not eight times


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold: since and until when (monotonic seconds), and what the API named.

    If the hold was over for a while before it was renewed, that while does not count: `since` is
    later by it. `refusals` counts the refusals in a row that named no usable time: the wait grows
    with it. `limit` is the name of the limit that was hit, if the API told it.
    """

    since: float
    until: float
    refusals: int = 0
    named_until: float = -inf
    limit: str | None = None

    def remaining(self, now: float) -> float:
        """Return the seconds left, 0 when only the probe's answer is awaited."""
        return max(0.0, self.until - now)

    def named_remaining(self, now: float) -> float:
        """Return the seconds left of what the API named, or of the hold if that is longer."""
        return max(0.0, self.until - now, self.named_until - now)

    def kept(self, now: float) -> float:
        """Return the seconds held so far, without the wait for the probe and its answer."""
        return max(0.0, min(now, self.until) - self.since)  # the sums may round


def hold_after(  # noqa: PLR0913 -- the parts of a hold, by name
    current: Hold | None,
    *,
    now: float,
    until: float,
    refusals: int,
    named_until: float = -inf,
    limit: str | None = None,
) -> Hold:
    """Return the hold after a refusal at `now` that asks for a hold until `until`."""
    until = max(now, until)
    if current is None:
        return Hold(now, until, refusals, max(until, named_until), limit)
    return Hold(
        since=current.since + max(0.0, now - current.until),
        until=max(current.until, until),
        refusals=max(current.refusals, refusals),
        named_until=max(current.named_until, named_until, until),
        limit=limit or current.limit,
    )


@dataclass(frozen=True, slots=True)
class HoldState:
    """The phase, and the seconds spent in holds that are over."""

    hold: Hold | None = None  # None: open
    probes: int = 0  # under way
    probing_since: float = -inf
    past_seconds: float = 0.0

    def opens_at(self, now: float) -> float:
        """Return when a slot may be granted; `inf` while an answer must come first."""
        if self.hold is None:
            return now
        if self.probes >= MOST_PROBES:
            return inf
        if self.probes:
            return max(self.hold.until, self.probing_since + PROBE_SECONDS)
        return self.hold.until

    def may_leave(self, now: float, *, is_probe: bool) -> bool:
        """True if a request with a slot may leave: always if open, a probe after the hold."""
        return self.hold is None or (is_probe and self.hold.until <= now)

    def remaining(self, now: float) -> float:
        """Return the seconds until the hold ends."""
        return self.hold.remaining(now) if self.hold else 0.0

    def named_remaining(self, now: float) -> float:
        """Return the seconds until what the API named ends."""
        return self.hold.named_remaining(now) if self.hold else 0.0

    def held_seconds(self, now: float) -> float:
        """Return the seconds on hold so far, those of the present hold included."""
        return self.past_seconds + (self.hold.kept(now) if self.hold else 0.0)

    def granted(self, now: float) -> "HoldState":
        """Return the state after a slot was granted: on hold, it is a probe's."""
        if self.hold is None:
            return self
        since = self.probing_since if self.probes else now
        return replace(self, probes=self.probes + 1, probing_since=since)

    def held(
        self,
        *,
        now: float,
        until: float,
        refusals: int = 0,
        named_until: float = -inf,
        limit: str | None = None,
    ) -> "HoldState":
        """Return the state after the API, or another replica, asked for a hold until `until`."""
        hold = hold_after(
            self.hold,
            now=now,
            until=until,
            refusals=refusals,
            named_until=named_until,
            limit=limit,
        )
        return replace(self, hold=hold)

    def refusals_after(self, *, is_probe: bool) -> int:
        """Return the refusals in a row with one more that names no time.

        A request sent before the hold, or beside the probe, may be refused too: that is no further
        failure in a row.
        """
        return 1 if self.hold is None else self.hold.refusals + is_probe

    def probes_ended(self) -> "HoldState":
        """Return the state after a probe was refused: the other probes no longer count."""
        return replace(self, probes=0)

    def probe_ended(self, now: float, *, accepted: bool) -> "HoldState":
        """Return the state after a probe was accepted or lost."""
        if accepted and self.hold is not None and self.hold.until <= now:
            return HoldState(past_seconds=self.held_seconds(now))
        return replace(self, probes=self.probes - 1)
