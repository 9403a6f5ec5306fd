"""The holds of one account: which one a refusal begins, and what ends it.

A hold covers the whole account or one of its queues, and all replicas obey it. The phases of a hold
are in rules/hold.py, its probes in holding.py.

Invariants: nothing here decides who sends next; the scheduler does, after each change. From
`suspend` until the refusal is known, nothing leaves. A wait that the API or another replica names
is clamped to `retry.max_retry_after`.
"""

from collections.abc import Iterable
from typing import Literal

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.allowance import Allowance
from proxy.pacing.holding import Holding, HoldSpan
from proxy.pacing.leased_queue import LeasedQueue
from proxy.pacing.leases import HoldLeft
from proxy.pacing.slot import Ending, Refused, Slot
from proxy.rules.hold import Hold
from proxy.rules.limits import reach_of
from proxy.rules.quota import Quota
from proxy.rules.retry_after import believable

HoldReason = Literal["refused", "quota", "operator"]


class Holds:
    """Begins and ends the holds of an account and of its queues."""

    __slots__ = ("_allowance", "_context", "_queues")

    def __init__(self, allowance: Allowance, queues: Iterable[AccountQueue]) -> None:
        self._allowance = allowance
        self._context = allowance.context
        self._queues = queues

    def __repr__(self) -> str:
        return f"<Holds of {self._allowance.label}>"

    def begin(self, span: HoldSpan, queue: LeasedQueue | None, reason: HoldReason) -> None:
        """Hold one queue, or the whole account (None), and tell the other replicas."""
        self._prolong(span, queue, reason)
        now, name = self._context.clock.monotonic(), "" if queue is None else queue.lease_name
        left = HoldLeft(span.until - now, max(span.until, span.named_until) - now)
        self._context.leases.held(self._allowance.key, name, left)

    def obey(self, left: HoldLeft, queue: LeasedQueue | None) -> None:
        """Hold one queue or the whole account (None), as another replica was told to."""
        now = self._context.clock.monotonic()
        until = now + min(left.seconds, self._context.retry_rules.settings.max_retry_after)
        span = HoldSpan(at=now, until=until, named_until=now + left.named)
        self._prolong(span, queue, "refused")

    def obey_end(self, queue: LeasedQueue | None) -> bool:
        """End a hold that is over, as another replica has seen; True if there was one."""
        is_over = self._holding(queue).open(self._context.clock.monotonic())
        if is_over:
            self.count()
        return is_over

    def suspend(self, slot: Slot) -> None:
        """Let nothing leave until the body of `slot`'s 429 says what the hold covers."""
        if slot.is_open and not slot.is_refusing:
            slot.is_refusing = True
            self._allowance.refusing += 1

    def refused(self, queue: AccountQueue, slot: Slot, refused: Refused) -> None:
        """Hold what the API's refusal of `slot` covers, for as long as it asked for."""
        now = self._context.clock.monotonic()
        clamp = self._context.retry_rules.settings.max_retry_after
        named = believable(refused.seconds, maximum=clamp)
        rule = self._context.hold_rules.get(queue.route, "auto")
        reach = reach_of(refused.limit, rule, named=named, maximum=clamp)
        held = queue.leased if reach.is_route else None
        holding = self._holding(held)
        span = self._allowance.span_of(
            slot,
            Refused(named, refused.limit),
            holding,
            now,
            interval=self._allowance.interval_on(queue.route),
        )
        holding.refused(slot)
        self.begin(span, held, "refused")
        if reach.is_organization and self._allowance.organization is not None:
            route = None if held is None else (held.route, held.paced)
            self._context.hold_organization(self._allowance.organization, span, route)

    def note_quota(self, quota: Quota) -> None:
        """Obey an announced quota, with a hold if the API would refuse the next request."""
        span = self._allowance.note_quota(quota, self._context.clock.monotonic())
        if span is not None:
            self.begin(span, None, "quota")

    def ended(self, queue: AccountQueue, slot: Slot, *, accepted: bool) -> None:
        """Note that a slot is over; if it was a probe, that may end a hold."""
        for holding, name in (
            (self._allowance.holding, ""),
            (queue.holding, queue.leased.lease_name),
        ):
            if holding.state.hold is not None:  # else there are no probes
                self._end_probe(slot, holding, name, accepted=accepted)
        self._allowance.refusing -= slot.is_refusing

    def count(self) -> None:
        """Count the seconds on hold that are not counted yet, present holds included.

        Of holds of several routes at the same time the longest counts.
        """
        now = self._context.clock.monotonic()
        holdings = [self._allowance.holding, *(queue.holding for queue in self._queues)]
        seconds = max(holding.take_uncounted(now) for holding in holdings)
        seconds += self._allowance.take_uncounted_pause(now)
        if seconds > 0:
            self._context.metrics.held(self._allowance.label, seconds)

    def _holding(self, queue: LeasedQueue | None) -> Holding:
        return self._allowance.holding if queue is None else queue.holding

    def _end_probe(self, slot: Slot, holding: Holding, name: str, *, accepted: bool) -> None:
        """Note that a slot is over, which may end a hold; other replicas may know of its wait."""
        now, hold = self._context.clock.monotonic(), holding.hold
        if holding.ended(slot, now, accepted=accepted):
            self.count()
            if hold is not None and hold.named_until > now:
                self._context.leases.hold_over(self._allowance.key, name)

    def _prolong(self, span: HoldSpan, queue: LeasedQueue | None, reason: HoldReason) -> None:
        holding = self._holding(queue)
        if holding.prolong(span):
            self._context.metrics.hold_begun(self._allowance.label, reason)
        route, label = None if queue is None else queue.route, self._allowance.label
        self._context.metrics.history.held(label, route, begun=span.at, until=span.until)
        if holding.hold is not None and holding.hold.named_until > holding.hold.until:
            queues = [one.leased for one in self._queues] if queue is None else [queue]
            _end_hopeless(queues, holding.hold)


def _end_hopeless(queues: Iterable[LeasedQueue], hold: Hold) -> None:
    """End the waits that are shorter than the named wait, except the one that goes as the probe."""
    waiting = [(queue, ticket) for queue in queues for ticket in queue.queue.waiters]
    probes = [
        (not queue.paced, ticket.number)
        for queue, ticket in waiting
        if ticket.deadline >= hold.until and ticket.is_waiting
    ]
    probe = min(probes, default=None)
    for queue, ticket in waiting:
        is_probe = (not queue.paced, ticket.number) == probe
        if ticket.deadline < hold.named_until and not is_probe:
            ticket.end(Ending.HELD)
