"""The hold of an account or a queue: its phase, and the slots that are its probes.

rules/hold.py has the phases and what changes them; this module knows which slots are probes. An
account has a `Holding`, and so has each of its queues.
"""

from dataclasses import dataclass
from math import inf

from proxy.clock import Clock
from proxy.pacing.slot import Slot
from proxy.rules.hold import Hold, HoldState


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldSpan:
    """A hold as the API, or another replica, asked for it; monotonic seconds.

    `at` is when it did. `named_until` is the end that the API named, `until` the end up to which
    the proxy obeys without a probe. `limit` is the name of the limit that was hit.
    """

    at: float
    until: float
    named_until: float = -inf
    refusals: int = 0
    limit: str | None = None


class Holding:
    """Whether an account, or a route of it, is open, held or probing."""

    __slots__ = ("_counted_seconds", "_probes", "state")

    def __init__(self) -> None:
        self.state = HoldState()
        self._probes: set[Slot] = set()
        self._counted_seconds = 0.0

    def __repr__(self) -> str:
        return f"<Holding {self.state}>"

    @property
    def hold(self) -> Hold | None:
        """The hold; None if open."""
        return self.state.hold

    @property
    def until(self) -> float:
        """When the hold ends; `-inf` if open."""
        return self.state.hold.until if self.state.hold else -inf

    @property
    def limit(self) -> str | None:
        """The name of the limit that was hit, while the hold lasts."""
        return self.state.hold.limit if self.state.hold else None

    def may_leave(self, slot: Slot, now: float) -> bool:
        """True if no hold keeps that slot's request from leaving."""
        state = self.state
        return state.hold is None or state.may_leave(now, is_probe=slot in self._probes)

    def granted(self, slot: Slot, now: float) -> None:
        """Note a slot that was granted: on hold, it is a probe."""
        if self.state.hold is not None:
            self._probes.add(slot)
            self.state = self.state.granted(now)

    def refusals_after(self, slot: Slot) -> int:
        """Return the refusals in a row after one of `slot` that names no time."""
        return self.state.refusals_after(is_probe=slot in self._probes)

    def refused(self, slot: Slot) -> None:
        """Note that a slot was refused: after a refused probe the other probes no longer count."""
        if slot in self._probes:
            self._probes.clear()
            self.state = self.state.probes_ended()

    def inherit(self, other: "Holding") -> None:
        """Prolong the hold to that of another route, which took the same paths."""
        hold = other.hold
        if hold is not None:
            self.prolong(
                HoldSpan(
                    at=hold.since,
                    until=hold.until,
                    named_until=hold.named_until,
                    refusals=hold.refusals,
                    limit=hold.limit,
                )
            )

    def prolong(self, span: HoldSpan) -> bool:
        """Begin or prolong the hold; True if it begins."""
        begins = self.state.hold is None
        self.state = self.state.held(
            now=span.at,
            until=span.until,
            named_until=span.named_until,
            refusals=span.refusals,
            limit=span.limit,
        )
        return begins

    def ended(self, slot: Slot, now: float, *, accepted: bool) -> bool:
        """Note that a slot is over; True if that ends the hold."""
        if slot not in self._probes:
            return False
        self._probes.discard(slot)
        self.state = self.state.probe_ended(now, accepted=accepted)
        if self.state.hold is None:
            self._probes.clear()
        return self.state.hold is None

    def open(self, now: float) -> bool:
        """End a hold that is over, whatever the API named; True if there was one."""
        if self.state.hold is None or self.state.hold.until > now:
            return False
        self.state = HoldState(past_seconds=self.state.held_seconds(now))
        self._probes.clear()
        return True

    def take_uncounted(self, now: float) -> float:
        """Return the seconds on hold that no earlier call returned."""
        held = self.state.held_seconds(now)
        uncounted, self._counted_seconds = held - self._counted_seconds, held
        return uncounted


class QueueHolds:
    """The two holds that a queue obeys: that of all routes of its account, and its route's own."""

    __slots__ = ("_both", "_clock")

    def __init__(self, of_account: Holding, of_route: Holding, clock: Clock) -> None:
        self._both = (of_account, of_route)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<QueueHolds {self._both}>"

    def seconds(self) -> float:
        """Return the seconds spent on hold so far, those of the present hold included."""
        now = self._clock.monotonic()
        return sum(one.state.held_seconds(now) for one in self._both)

    def named_left(self) -> float:
        """Return the seconds left of what the API named, or of the hold if that is longer."""
        now = self._clock.monotonic()
        return max(one.state.named_remaining(now) for one in self._both)

    def is_clamped(self) -> bool:
        """True if the API named a wait that outlasts the time without a probe."""
        holds = (one.hold for one in self._both)
        return any(hold.named_until > hold.until for hold in holds if hold)
