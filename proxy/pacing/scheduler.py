"""Who may send next in one account, and what each slot's report means.

Theory of operation. A request waits in the queue of its account and route. A slot is due in a queue
when the account is open (no hold, no probe under way, room in flight) and the queue's pace and
lease allow a send. `pump` looks for due slots and offers each to the first waiter of its queue;
among queues whose slots are due, the waiter that came first goes first. Then it sets one timer for
the next due moment. Nothing is booked on arrival, so a caller that leaves costs nothing.

A slot comes back through `settle`, the only place that reads reports. Each event that may
let another request go (a send, an answer, a slot given back, a lease, a hold) ends in `pump`.

Invariants: everything here is synchronous and raises nothing. `in_flight` counts the open slots and
the answers that are not complete. A caller that has left, or whose deadline has passed, gets no
slot.
"""

from math import inf
from typing import assert_never

from proxy.clock import Timer
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.allowance import Allowance
from proxy.pacing.holding import HoldSpan
from proxy.pacing.holds import HoldReason, Holds
from proxy.pacing.leased_queue import LeasedQueue
from proxy.pacing.leases import HoldLeft
from proxy.pacing.queues import Queues
from proxy.pacing.slot import (
    Answered,
    NotSent,
    Refused,
    Refusing,
    Report,
    Sent,
    Slot,
    Ticket,
    Unused,
)


class AccountScheduler:
    """Offers the slots of one account, and takes them back."""

    __slots__ = ("_allowance", "_context", "_timer", "holds", "queues")

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._context = allowance.context
        self._timer: Timer | None = None
        self.queues = Queues(self, allowance)
        self.holds = Holds(allowance, self.queues)

    def __repr__(self) -> str:
        waiting = sum(queue.depth for queue in self.queues)
        return f"<AccountScheduler {self._allowance.label}: {waiting} waiting>"

    # Who may send when

    def offers_at(self) -> float:
        """Return when the next slot is to be offered; `inf` if something else must come first."""
        now = self._context.clock.monotonic()
        firsts = [(queue, queue.waiters.first) for queue in self.queues]
        dues = [
            max(queue.times.due_since(now), first.joined_at) for queue, first in firsts if first
        ]
        return max(self._allowance.opens_at(self._allowance.room_since), min(dues)) if dues else inf

    def pump(self) -> None:
        """Offer every slot that is due, then set the timer for the next one."""
        self._offer_due()
        for queue in self.queues:
            queue.leased.order_lease()

    def _offer_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        clock = self._context.clock
        now = clock.monotonic()
        while True:
            waiting = [queue for queue in self.queues if queue.depth]
            if not waiting:
                return
            opens = self._allowance.opens_at(now)
            due = [queue for queue in waiting if max(opens, queue.times.due(now)) <= now]
            if not due:
                at = max(opens, min(queue.times.due(now) for queue in waiting))
                if at < inf:
                    self._timer = clock.call_at(at, self.pump)
                return
            is_held = self._allowance.holding.hold is not None
            self._offer(min(due, key=lambda queue: _order(queue, is_held=is_held)), now)

    def _offer(self, queue: AccountQueue, now: float) -> None:
        """Offer the slot that is due to the first waiter, and drop one that cannot use it.

        Such a caller has left, and its task may not know yet; or its deadline has passed, and its
        timer is about to end the wait.
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

    def grant(self, queue: AccountQueue, ticket: Ticket, now: float) -> Slot:
        """Give the slot that is due to that ticket."""
        not_before = queue.times.paced_due(now)
        due_at = now  # of one that has only just come
        if ticket.joined_at < now:
            due_at = min(self._due_since(queue, ticket, not_before), now)
        ticket.had_slot = True
        slot = Slot(queue, ticket, at=now, due_at=due_at, not_before=not_before)
        self._allowance.granted(slot, now)
        queue.holding.granted(slot, now)
        queue.queue.granted(slot)
        queue.waiters.served(ticket)
        return slot

    def _due_since(self, queue: AccountQueue, ticket: Ticket, not_before: float) -> float:
        """Return since when that ticket could have had the slot."""
        if self._allowance.is_observed:
            due = ticket.joined_at
        else:
            due = max(not_before, ticket.joined_at, self._allowance.room_since)
            for holding in (self._allowance.holding, queue.holding):
                due = max(due, holding.state.opens_at(-inf))
        return max(due, self._allowance.control.opens_at(-inf))

    # What becomes of a slot

    def may_send(self, queue: AccountQueue, slot: Slot, now: float) -> bool:
        """True if hold, pace and lease still let the slot's request leave."""
        if not self._allowance.may_leave(slot, now):
            return False
        if self._allowance.is_observed:
            return True
        return queue.holding.may_leave(slot, now) and queue.times.opens_at(now) <= now

    def settle(self, queue: AccountQueue, slot: Slot, report: Report) -> None:
        """Process a slot's report."""
        match report:
            case Sent(at):
                self._sent(queue, slot, at)
            case NotSent():
                self._spend(queue, slot, self._context.clock.monotonic())
                self._leave(queue, slot, accepted=False)
            case Answered(quota):
                if quota is not None:
                    self.holds.note_quota(quota)
                self._leave(queue, slot, accepted=True)
            case Refusing():
                self.holds.suspend(slot)
            case Refused():
                self.holds.refused(queue, slot, report)
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
            self._allowance.label,
            queue.route,
            lateness=at - slot.due_at,
            early=at < slot.not_before,
            request_id=slot.request_id,
        )
        gap = queue.queue.note_sent(at)
        self._context.metrics.history.sent(self._allowance.label, queue.route, at=at, gap=gap)
        self._allowance.count_send(at)
        self._spend(queue, slot, at)

    def _spend(self, queue: AccountQueue, slot: Slot, at: float) -> None:
        """Keep the distance from a send, or from an attempt that never left."""
        if not queue.paced:
            return
        queue.queue.spend(slot, at)
        self.queues.spent(queue)
        self._context.leases.used(queue.leased)
        if queue.queue.given_back(slot):
            self.pump()

    def _leave(self, queue: AccountQueue, slot: Slot, *, accepted: bool) -> None:
        """Free the room a slot had in flight, once, for the next request."""
        if slot.is_open:
            slot.is_open = False
            queue.queue.given_back(slot)
            queue.queue.ended(slot, self._context.clock.monotonic(), accepted=accepted)
            self.holds.ended(queue, slot, accepted=accepted)
            self.make_room()

    def take_room(self) -> None:
        """Count an incomplete answer as in flight until `make_room` is called."""
        self._allowance.in_flight += 1

    def make_room(self) -> None:
        """Free room in flight for the next request."""
        self._allowance.leave_room()
        self.pump()

    # Holds, which other replicas or other accounts know of

    def hold(self, span: HoldSpan, queue: AccountQueue | None, reason: HoldReason) -> None:
        """Hold one queue, or the whole account (None), and tell the other replicas."""
        self.holds.begin(span, None if queue is None else queue.leased, reason)
        self.pump()

    def obey_hold(self, left: HoldLeft, queue: LeasedQueue | None) -> None:
        """Hold one queue or the whole account (None), as another replica was told to."""
        self.holds.obey(left, queue)
        self.pump()

    def obey_end_of_hold(self, queue: LeasedQueue | None) -> None:
        """End a hold that is over, as another replica has seen."""
        if self.holds.obey_end(queue):
            self.pump()


def _order(queue: AccountQueue, *, is_held: bool) -> tuple[bool, float]:
    """Return the sort key of a queue whose slot is due; as a probe a paced request is preferred."""
    first = queue.waiters.first
    return is_held and not queue.paced, inf if first is None else first.number
