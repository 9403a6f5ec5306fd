"""One service account: it decides who may send when.

Theory of operation. A request waits in the queue of its account and route. A slot is due in a queue
when the account is open (no hold, no probe under way, room in flight) and the queue's pace and
lease allow a send. `Account.pump` looks for due slots and offers each to the first waiter of its
queue; among queues whose slots are due, the waiter that came first goes first. Then it sets one
timer for the next due moment. Nothing is booked on arrival, so a caller that leaves costs nothing.

A slot comes back through `Account.settle`, the only place that reads reports. Whatever may let
another request go (a send, an answer, a slot given back, a lease, a hold) ends in `pump`.

Invariants: everything here is synchronous and raises nothing. `in_flight` counts the slots that are
open, and the answers of which more is to come. A caller that has gone, or is past its deadline, is
offered no slot.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal, assert_never

from proxy.clock import Timer
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.allowance import Allowance
from proxy.pacing.context import PacingContext
from proxy.pacing.holding import Holding, HoldOrder
from proxy.pacing.queues import Queues
from proxy.pacing.slot import (
    Answered,
    Ending,
    NotSent,
    Refused,
    Refusing,
    Report,
    Sent,
    Slot,
    Ticket,
    Unused,
)
from proxy.pacing.turns import HoldLeft
from proxy.rules.hold import Hold
from proxy.rules.limits import reach_of
from proxy.rules.quota import Quota
from proxy.rules.retry_after import believable
from proxy.rules.state import AccountState

HoldReason = Literal["refused", "quota", "operator"]


@dataclass(frozen=True, slots=True)
class _Granter:
    """Takes what becomes of a slot of that queue, whatever its route is called by then."""

    account: "Account"
    queue: AccountQueue

    def may_send(self, slot: Slot, now: float) -> bool:
        """True if hold, pace and lease still let the slot's request leave."""
        return self.account.may_send(self.queue, slot, now)

    def settle(self, slot: Slot, report: Report) -> None:
        """Take what became of the slot."""
        self.account.settle(self.queue, slot, report)


class Account:
    """One service account: its queues, its hold, what it has in flight."""

    def __init__(
        self, context: PacingContext, key: str, label: str, *, interval: float | None
    ) -> None:
        self.allowance = Allowance(context, key, label, interval)
        self._context = context
        self._queues = Queues(self, self.allowance)
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        waiting = sum(queue.depth for queue in self.queues)
        return f"<Account {self.label}: {waiting} waiting, {self.allowance.in_flight} in flight>"

    @property
    def label(self) -> str:
        """The account's name for people."""
        return self.allowance.label

    def rename(self, label: str, *, interval: float | None) -> None:
        """Obey another name and interval of its own."""
        self.allowance.label, self.allowance.own_interval = label, interval

    @property
    def queues(self) -> tuple["AccountQueue", ...]:
        """The account's queues, one for each route it has used."""
        return tuple(self._queues)

    def queue(self, route: str, *, paced: bool) -> "AccountQueue":
        """Return the queue in which requests of that route wait."""
        return self._queues.get(route, paced=paced)

    def hand_over(
        self, predecessors: Mapping[str, Iterable[str]], *, paced: Container[str]
    ) -> None:
        """Let queues go on for the routes that take their paths now (queues.py)."""
        self._queues.hand_over(predecessors, paced=paced)

    # Who may send when

    def offers_at(self) -> float:
        """Return when the next slot is to be offered; `inf` if something else must come first."""
        now = self._context.clock.monotonic()
        firsts = [(queue, queue.waiters.first) for queue in self.queues]
        dues = [max(queue.due_since(now), first.joined_at) for queue, first in firsts if first]
        return max(self.allowance.opens_at(self.allowance.room_since), min(dues)) if dues else inf

    def pump(self) -> None:
        """Offer every slot that is due, then set the timer for the next one."""
        self._offer_due()
        for queue in self._queues:
            queue.order_lease()

    def _offer_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        clock = self._context.clock
        now = clock.monotonic()
        while True:
            waiting = [queue for queue in self._queues if queue.depth]
            if not waiting:
                return
            opens = self.allowance.opens_at(now)
            due = [queue for queue in waiting if max(opens, queue.due(now)) <= now]
            if not due:
                at = max(opens, min(queue.due(now) for queue in waiting))
                if at < inf:
                    self._timer = clock.call_at(at, self.pump)
                return
            is_held = self.allowance.holding.hold is not None
            self._offer(min(due, key=lambda queue: _turn(queue, is_held=is_held)), now)

    def _offer(self, queue: "AccountQueue", now: float) -> None:
        """Offer the slot that is due to the first waiter, and drop one that cannot use it.

        That is a caller that has gone, of which its task may not know yet, or one that is past its
        deadline, whose timer is about to end the wait.
        """
        ticket = queue.waiters.first
        if ticket is None:
            return
        offer = ticket.offer
        queue.waiters.remove(ticket)
        if offer is None or offer.done() or now > ticket.deadline:
            return
        if ticket.is_present():
            offer.set_result(self.grant(queue, ticket, now))
        else:
            offer.cancel()

    def grant(self, queue: "AccountQueue", ticket: Ticket, now: float) -> Slot:
        """Give the slot that is due to that ticket."""
        not_before = queue.paced_due(now)
        due = max(not_before, ticket.joined_at, self.allowance.room_since)
        for holding in (self.allowance.holding, queue.holding):
            due = max(due, holding.state.opens_at(-inf))
        granter = _Granter(self, queue)
        slot = Slot(granter, ticket, at=now, due_at=min(due, now), not_before=not_before)
        self.allowance.granted(slot)
        queue.holding.granted(slot, now)
        queue.queue.granted(slot)
        queue.waiters.served(ticket)
        return slot

    # What becomes of a slot

    def may_send(self, queue: AccountQueue, slot: Slot, now: float) -> bool:
        """True if hold, pace and lease still let the slot's request leave."""
        is_open = self.allowance.may_leave(slot, now) and queue.holding.may_leave(slot, now)
        return is_open and queue.opens_at(now) <= now

    def settle(self, queue: AccountQueue, slot: Slot, report: Report) -> None:
        """Take what became of a slot."""
        match report:
            case Sent(at):
                self._sent(queue, slot, at)
            case NotSent():
                self._spend(queue, slot, self._context.clock.monotonic())
                self._leave(queue, slot, accepted=False)
            case Answered(quota):
                if quota is not None:
                    self._note_quota(quota)
                self._leave(queue, slot, accepted=True)
            case Refusing():
                self._suspend(slot)
            case Refused():
                self._refused(queue, slot, report)
                self._leave(queue, slot, accepted=False)
            case Unused():
                self._leave(queue, slot, accepted=False)
            case _:
                assert_never(report)

    def _sent(self, queue: AccountQueue, slot: Slot, at: float) -> None:
        if slot.sent_at > -inf:
            return
        slot.sent_at = at
        self._context.metrics.sent(
            self.label,
            queue.route,
            lateness=at - slot.due_at,
            early=at < slot.not_before,
            request_id=slot.request_id,
        )
        queue.queue.note_sent(at)
        self.allowance.count_send(at)
        self._spend(queue, slot, at)

    def _spend(self, queue: AccountQueue, slot: Slot, at: float) -> None:
        """Keep the distance from a send, or from a try that never left."""
        if not queue.paced:
            return
        queue.queue.spend(slot, at)
        self._queues.spent(queue)
        self._context.turns.used(queue)
        if queue.queue.given_back(slot):
            self.pump()

    def _leave(self, queue: AccountQueue, slot: Slot, *, accepted: bool) -> None:
        """Take back the room a slot had in flight, once, and let the next request have it."""
        if slot.is_open:
            slot.is_open = False
            now = self._context.clock.monotonic()
            queue.queue.given_back(slot)
            queue.queue.ended(slot, now, accepted=accepted)
            self._end_probe(slot, self.allowance.holding, "", accepted=accepted)
            self._end_probe(slot, queue.holding, queue.lease_name, accepted=accepted)
            self.allowance.refusing -= slot.is_refusing
            self.allowance.leave_room()
            self.pump()

    def _end_probe(self, slot: Slot, holding: Holding, name: str, *, accepted: bool) -> None:
        """Note that a slot is over, which may end a hold; other replicas may know of its wait."""
        now, hold = self._context.clock.monotonic(), holding.hold
        if holding.ended(slot, now, accepted=accepted):
            self.count_hold()
            if hold is not None and hold.named_until > now:
                self._context.turns.hold_over(self.allowance.key, name)

    # Refusals and quotas

    def _suspend(self, slot: Slot) -> None:
        """Let nothing leave until it is known what the refusal of `slot` covers."""
        if slot.is_open and not slot.is_refusing:
            slot.is_refusing = True
            self.allowance.refusing += 1

    def _refused(self, queue: AccountQueue, slot: Slot, refused: Refused) -> None:
        """Hold what the API's refusal of `slot` covers, for as long as it asked for."""
        now = self._context.clock.monotonic()
        clamp = self._context.retry_rules.settings.max_retry_after
        named = believable(refused.seconds, maximum=clamp)
        rule = self._context.hold_rules.get(queue.route, "auto")
        reach = reach_of(refused.limit, rule, named=named, maximum=clamp)
        held = queue if reach.is_route else None
        holding = self.allowance.holding if held is None else held.holding
        order = self.allowance.order_of(slot, Refused(named, refused.limit), holding, now)
        holding.refused(slot)
        self.hold(order, held, "refused")
        if reach.is_organization and self.allowance.organization is not None:
            route = None if held is None else (held.route, held.paced)
            self._context.hold_organization(self.allowance.organization, order, route)

    def _note_quota(self, quota: Quota) -> None:
        order = self.allowance.note_quota(quota, self._context.clock.monotonic())
        if order is not None:
            self.hold(order, None, "quota")

    def hold(self, order: HoldOrder, queue: AccountQueue | None, reason: HoldReason) -> None:
        """Hold one queue, or the whole account (None), and tell the other replicas."""
        self._hold(order, queue, reason)
        now, name = self._context.clock.monotonic(), "" if queue is None else queue.lease_name
        left = HoldLeft(order.until - now, max(order.until, order.named_until) - now)
        self._context.turns.held(self.allowance.key, name, left)

    def obey_hold(self, left: HoldLeft, queue: AccountQueue | None) -> None:
        """Hold one queue or the whole account (None), as another replica was told to.

        What comes from the store is clamped as what the API names.
        """
        now = self._context.clock.monotonic()
        until = now + min(left.seconds, self._context.retry_rules.settings.max_retry_after)
        order = HoldOrder(at=now, until=until, named_until=now + left.named)
        self._hold(order, queue, "refused")
        self.pump()

    def obey_end_of_hold(self, queue: AccountQueue | None) -> None:
        """End a hold that is over, as another replica has seen."""
        holding = self.allowance.holding if queue is None else queue.holding
        if holding.open(self._context.clock.monotonic()):
            self.count_hold()
            self.pump()

    def _hold(self, order: HoldOrder, queue: AccountQueue | None, reason: HoldReason) -> None:
        holding = self.allowance.holding if queue is None else queue.holding
        if holding.prolong(order):
            self._context.metrics.hold_begun(self.label, reason)
        if holding.hold is not None and holding.hold.named_until > holding.hold.until:
            self._end_hopeless(self.queues if queue is None else (queue,), holding.hold)

    def _end_hopeless(self, queues: Iterable[AccountQueue], hold: Hold) -> None:
        """End the waits that a named wait outlasts, but for the one that goes as the probe."""
        waiting = [(queue, ticket) for queue in queues for ticket in queue.waiters]
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

    def take_room(self) -> None:
        """Count an answer as in flight, of which more is to come, until `make_room` is called."""
        self.allowance.in_flight += 1

    def make_room(self) -> None:
        """Make room in flight, and let the next request have it."""
        self.allowance.leave_room()
        self.pump()

    def end_waits(self, ending: Ending) -> None:
        """End every wait without a slot."""
        for queue in self.queues:
            queue.end_waits(ending)

    # What can be seen

    def count_hold(self) -> None:
        """Count the seconds on hold that were not counted yet, those of present holds too.

        Of holds of several routes at the same time the longest counts.
        """
        now = self._context.clock.monotonic()
        holdings = [self.allowance.holding, *(queue.holding for queue in self.queues)]
        seconds = max(holding.take_uncounted(now) for holding in holdings)
        if seconds > 0:
            self._context.metrics.held(self.label, seconds)

    def idle_from(self) -> float:
        """When the account can be dropped without losing its pace or hold (`inf`: in use)."""
        if self.allowance.in_flight or any(queue.depth for queue in self.queues):
            return inf
        return self._rests_until()

    def predicted_idle(self, now: float) -> float:
        """When it may be idle, if nobody else comes; answers that are under way come at once."""
        backlogs = [now + queue.backlog_seconds(now) for queue in self.queues if queue.is_in_use]
        return max(now, self._rests_until(), *backlogs)

    def _rests_until(self) -> float:
        hold = self.allowance.holding.hold
        held = [] if hold is None else [hold.until]
        for queue in self.queues:
            held += [queue.hold_until(), queue.pace_due()]
        return max(0.0, *held) if held else 0.0

    def state(self, now: float) -> AccountState:
        """Return what is known of the account."""
        return AccountState(
            name=self.label,
            routes=tuple(queue.state(now) for queue in self.queues),
            in_flight=self.allowance.in_flight,
            hold_remaining_seconds=self.allowance.holding.state.remaining(now),
            hold_named_seconds=max(
                self.allowance.holding.state.named_remaining(now),
                *(queue.holding.state.named_remaining(now) for queue in self.queues),
                0.0,
            ),
            hold_limit=self.allowance.holding.limit,
            quota_remaining=self.allowance.quota_remaining(now),
        )


def _turn(queue: AccountQueue, *, is_held: bool) -> tuple[bool, float]:
    """Return the order of queues whose slots are due; as a probe, a paced request is preferred."""
    first = queue.waiters.first
    return is_held and not queue.paced, inf if first is None else first.number
