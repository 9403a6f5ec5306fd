"""What an account is allowed, on all its routes together: interval, hold, room in flight, retries.

Invariants: room in flight does not end a hold. Nothing here decides who sends next; the scheduler
does, after each change (scheduler.py).
"""

from math import inf
from typing import Literal

from proxy.pacing.context import PacingContext
from proxy.pacing.holding import Holding, HoldSpan
from proxy.pacing.slot import Refused, Slot
from proxy.rules.orders import FREE_HAND, Control
from proxy.rules.pace import interval_of
from proxy.rules.quota import Quota, QuotaLeft
from proxy.rules.retry_budget import RetryBudget

Mode = Literal["enforce", "observe"]


class Allowance:
    """The limits of one service account, and how far they are used.

    `label` is the account's name for people, `key` that of its state in a store.
    """

    def __init__(self, context: PacingContext, key: str, label: str) -> None:
        self.context = context
        self.key = key
        self.label = label
        self.own_interval: float | None = None
        self.own_mode: Mode | None = None
        self.organization: str | None = None
        self.may_be_another = False  # whose it is could not be asked; the other has its own pace
        self.in_flight = 0
        self.room_since = 0.0  # when room in flight was last made
        self.refusing = 0  # slots whose 429 is still being read
        self.holding = Holding()
        self.control: Control = FREE_HAND  # what operators ordered
        self._announced = 0  # requests of the quota, as the API last announced it
        self._quota_left: QuotaLeft | None = None
        self._budget = RetryBudget()
        self._counted_pause = 0.0  # seconds

    def __repr__(self) -> str:
        return f"<Allowance {self.label}: {self.in_flight} in flight, {self.holding}>"

    @property
    def interval(self) -> float:
        """Seconds between two sends now, on a paced route without an interval of its own."""
        return self.interval_on(None)

    def interval_on(self, route: str | None) -> float:
        """Return the seconds between two sends on that paced route, as configured and ordered."""
        configured = self.configured_interval_on(route)
        if self.control is FREE_HAND:
            return configured
        return self.control.interval(self.context.clock.monotonic(), configured)

    @property
    def configured_interval(self) -> float:
        """Seconds between two sends on a paced route without an interval of its own."""
        return self.configured_interval_on(None)

    def configured_interval_on(self, route: str | None) -> float:
        """Return the seconds between two sends on that paced route, as configured."""
        return interval_of(
            self.context.pacing.interval,
            account=self.own_interval,
            route=None if route is None else self.context.intervals.get(route),
        )

    @property
    def is_observed(self) -> bool:
        """True if pace and holds are not kept, and only their effects are counted."""
        return (self.own_mode or self.context.pacing.mode) == "observe"

    @property
    def spread(self) -> int:
        """The factor by which the interval grows while replicas send without leases."""
        leases = self.context.leases
        return leases.replicas if self.may_be_another else leases.spread

    def opens_at(self, now: float) -> float:
        """Return when the account may send at all: `inf` while an answer must come first."""
        if self.is_observed:
            return self.control.opens_at(now)
        if self.refusing or not self.has_room():
            return inf
        opens = self.holding.state.opens_at(now)
        if self.control is not FREE_HAND:
            opens = max(opens, self.control.opens_at(now))
        if self._quota_left is not None:
            opens = max(opens, self._quota_left.opens_at(now, self.in_flight))
        return opens

    def has_room(self) -> bool:
        """True if one more request may be in flight."""
        return self.in_flight < self.context.pacing.max_in_flight

    def may_leave(self, slot: Slot, now: float) -> bool:
        """True if no refusal and no operator keeps that slot's request from leaving."""
        if self.control.is_paused(now):
            return False
        return self.is_observed or (not self.refusing and self.holding.may_leave(slot, now))

    # What changes it

    def granted(self, slot: Slot, now: float) -> None:
        """Note a slot that was granted."""
        self.in_flight += 1
        self.holding.granted(slot, now)

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

    def note_quota(self, quota: Quota, now: float) -> HoldSpan | None:
        """Obey an announced quota; return a hold if the API would refuse the next request."""
        room = quota.remaining - self.context.reserve
        self._announced = quota.remaining
        self._quota_left = QuotaLeft(room, now + quota.reset)
        return None if room > 0 else self.clamped(now, quota.reset)

    def clamped(self, now: float, named: float, limit: str | None = None) -> HoldSpan:
        """Return the hold for a wait that the API named."""
        clamp = self.context.retry_rules.settings.max_retry_after
        return HoldSpan(at=now, until=now + min(named, clamp), named_until=now + named, limit=limit)

    def span_of(
        self, slot: Slot, refused: Refused, holding: Holding, now: float, *, interval: float
    ) -> HoldSpan:
        """Return the hold that a refusal asks for, on a route with that interval.

        If the 429 names no usable time the hold grows with the refusals in a row; a time that an
        earlier 429 named still counts.
        """
        rules, hold, limit = self.context.retry_rules, holding.hold, refused.limit.name
        if refused.seconds is None:
            refusals = holding.refusals_after(slot)
            until = now + rules.after_refusals(max(1, refusals))
            if hold is not None:
                until = max(until, min(hold.named_until, now + rules.settings.max_retry_after))
            return HoldSpan(at=now, until=until, refusals=refusals, limit=limit)
        if refused.seconds > 0:
            return self.clamped(now, refused.seconds, limit)
        return HoldSpan(at=now, until=slot.sent_at + slot.cost * interval, limit=limit)  # its pace

    # State

    def take_uncounted_pause(self, now: float) -> float:
        """Return the paused seconds that no earlier call returned."""
        held = self.control.held_seconds(now)
        uncounted, self._counted_pause = held - self._counted_pause, held
        return uncounted

    def quota_remaining(self, now: float) -> int | None:
        """Return the requests left of the quota, until its window ends."""
        if self._quota_left is None or self._quota_left.until <= now:
            return None
        return self._announced
