"""What an account is allowed, on all its routes together: interval, hold, room in flight, retries.

Invariants: a hold outlasts whatever the room in flight says. Nothing here looks for who may send
next; the account does, after each change (account.py).
"""

from math import inf

from proxy.pacing.context import PacingContext
from proxy.pacing.holding import Holding
from proxy.pacing.slot import Slot
from proxy.rules.retry_budget import RetryBudget


class Allowance:
    """The limits of one service account, and how far they are used.

    `label` is the account's name for people, `key` that of its state in a store.
    """

    def __init__(self, context: PacingContext, key: str, label: str, interval: float | None):
        self.context = context
        self.key = key
        self.label = label
        self.own_interval = interval
        self.may_be_another = False  # whose it is could not be asked; the other has its own pace
        self.in_flight = 0
        self.room_since = 0.0  # when room in flight was last made
        self._holding = Holding()
        self._budget = RetryBudget()
        self._held_counted = 0.0

    def __repr__(self) -> str:
        return f"<Allowance {self.label}: {self.in_flight} in flight, {self._holding}>"

    @property
    def interval(self) -> float:
        """Seconds between two sends on a paced route, as configured now."""
        own = self.own_interval
        return self.context.pacing.interval if own is None else own

    @property
    def spread(self) -> int:
        """The factor by which the interval grows while replicas send without leases."""
        turns = self.context.turns
        return turns.replicas if self.may_be_another else turns.spread

    def opens_at(self, now: float) -> float:
        """Return when the account may send at all: `inf` while an answer must come first."""
        if not self.has_room():
            return inf
        return self._holding.state.opens_at(now)

    def has_room(self) -> bool:
        """True if one more request may be in flight."""
        return self.in_flight < self.context.pacing.max_in_flight

    def may_leave(self, slot: Slot, now: float) -> bool:
        """True if no hold keeps that slot's request from leaving."""
        return self._holding.may_leave(slot, now)

    # What changes it

    def granted(self, slot: Slot) -> None:
        """Note a slot that was granted."""
        self.in_flight += 1
        self._holding.granted(slot)

    def ended(self, slot: Slot, *, accepted: bool) -> None:
        """Note that a slot is over; the answer to a probe may end the hold."""
        now = self.context.clock.monotonic()
        if self._holding.ended(slot, now, accepted=accepted):
            self.count_hold()
        self.leave_room()

    def leave_room(self) -> None:
        """Make room for one more in flight."""
        self.in_flight -= 1
        self.room_since = self.context.clock.monotonic()

    def count_send(self, at: float) -> None:
        """Count a send for the retry budget."""
        self._budget.count_send(at)

    def spend_retry(self) -> bool:
        """Spend one re-send of the budget; False when it is used up."""
        share = self.context.retry_rules.settings.budget
        return self._budget.take(self.context.clock.monotonic(), share)

    def refused(self, slot: Slot, named: float | None) -> None:
        """Go on hold because the API refused `slot`, for the seconds it named if it did."""
        now = self.context.clock.monotonic()
        hold = self._holding.state.hold
        refusals = 0 if hold is None else hold.refusals
        if named is None:
            refusals = self._holding.refusals_after(slot)
            until = now + self.context.retry_rules.after_refusals(max(1, refusals))
        elif named > 0:
            until = now + named
        else:
            until = slot.sent_at + slot.cost * self.interval  # the normal pace
        self._hold(now, until, refusals)
        self.context.turns.held(self.key, until - now)

    def obey_hold(self, seconds: float) -> None:
        """Obey a hold of which another replica was told."""
        now = self.context.clock.monotonic()
        self._hold(now, now + seconds, 0)

    def _hold(self, now: float, until: float, refusals: int) -> None:
        if self._holding.hold(now=now, until=until, refusals=refusals):
            self.context.metrics.hold_begun(self.label)

    # What can be seen

    def is_held(self) -> bool:
        """True from a refusal until the answer to the probe."""
        return self._holding.state.hold is not None

    def hold_until(self) -> float:
        """Return when the hold ends; `-inf` if there is none."""
        hold = self._holding.state.hold
        return -inf if hold is None else hold.until

    def hold_left(self) -> float:
        """Return the seconds until the hold ends."""
        return self._holding.state.remaining(self.context.clock.monotonic())

    def held_seconds(self) -> float:
        """Return the seconds spent on hold so far, those of the present hold included."""
        return self._holding.state.held_seconds(self.context.clock.monotonic())

    def count_hold(self) -> None:
        """Count the seconds on hold that were not counted yet, those of the present hold too."""
        held = self.held_seconds()
        if held > self._held_counted:
            self.context.metrics.held(self.label, held - self._held_counted)
            self._held_counted = held
