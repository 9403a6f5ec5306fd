"""One service account: it decides who may send when.

Theory of operation. A request waits in the queue of its account and route. A slot is due in a queue
when the account is open (no hold, no probe under way, room in flight) and the queue's pace and
lease allow a send. `Account.pump` looks for due slots and offers each to the first waiter of its
queue; among queues whose slots are due, the waiter who came first goes first. Then it sets one
timer for the next due moment. Nothing is booked on arrival, so a caller who leaves costs nothing.

A slot comes back through `Account.settle`, the only place that reads reports. Whatever may let
another request go (a send, an answer, a slot given back, a lease, a hold) ends in `pump`.

Invariants: everything here is synchronous and raises nothing. `in_flight` counts the slots that are
open, and the answers of which more is to come. A caller who has gone, or is past its deadline, is
offered no slot.
"""

from math import inf
from typing import assert_never

from proxy.clock import Timer
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.allowance import Allowance
from proxy.pacing.context import PacingContext
from proxy.pacing.slot import (
    Answered,
    Ending,
    NotSent,
    Refused,
    Report,
    Sent,
    Slot,
    Ticket,
    Unused,
)
from proxy.rules.state import AccountState


class Account:
    """One service account: its queues, its hold, what it has in flight."""

    def __init__(
        self, context: PacingContext, key: str, label: str, *, interval: float | None
    ) -> None:
        self.allowance = Allowance(context, key, label, interval)
        self._context = context
        self._queues: dict[str, AccountQueue] = {}
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
        return tuple(self._queues.values())

    def queue(self, route: str, *, paced: bool) -> "AccountQueue":
        """Return the account's queue on that route."""
        queue = self._queues.get(route)
        if queue is None:
            queue = self._queues[route] = AccountQueue(self, self.allowance, route, paced=paced)
            self._context.metrics.queue_opened(self.label, route)
        return queue

    # Who may send when

    def offers_at(self) -> float:
        """Return when the next slot is to be offered; `inf` if something else must come first."""
        now = self._context.clock.monotonic()
        firsts = [(queue, queue.waiters.first) for queue in self.queues]
        dues = [max(queue.due(now), first.joined_at) for queue, first in firsts if first]
        return max(self.allowance.opens_at(self.allowance.room_since), min(dues)) if dues else inf

    def pump(self) -> None:
        """Offer every slot that is due, then set the timer for the next one."""
        self._offer_due()
        for queue in self._queues.values():
            queue.order_lease()

    def _offer_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        clock = self._context.clock
        now = clock.monotonic()
        while True:
            waiting = [queue for queue in self._queues.values() if queue.depth]
            if not waiting:
                return
            opens = self.allowance.opens_at(now)
            due = [queue for queue in waiting if max(opens, queue.due(now)) <= now]
            if not due:
                at = max(opens, min(queue.due(now) for queue in waiting))
                if at < inf:
                    self._timer = clock.call_at(at, self.pump)
                return
            self._offer(min(due, key=_first_arrival), now)

    def _offer(self, queue: "AccountQueue", now: float) -> None:
        """Offer the slot that is due to the first waiter, and drop one that cannot use it.

        That is a caller who has gone, of which its task may not know yet, or one that is past its
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
        not_before = queue.due(now)
        allowance = self.allowance
        due = max(not_before, ticket.joined_at, allowance.room_since, allowance.hold_until())
        slot = Slot(self, queue.route, ticket, at=now, due_at=min(due, now), not_before=not_before)
        allowance.granted(slot)
        queue.queue.granted(slot)
        queue.waiters.served(ticket)
        return slot

    # What becomes of a slot

    def may_send(self, slot: Slot, now: float) -> bool:
        """True if hold, pace and lease still let the slot's request leave."""
        queue = self._queues[slot.route]
        return self.allowance.may_leave(slot, now) and queue.opens_at(now) <= now

    def settle(self, slot: Slot, report: Report) -> None:
        """Take what became of a slot."""
        match report:
            case Sent(at):
                self._sent(slot, at)
            case NotSent():
                self._spend(slot, self._context.clock.monotonic())
                self._leave(slot, accepted=False)
            case Answered():
                self._leave(slot, accepted=True)
            case Refused(seconds):
                self.allowance.refused(slot, seconds)
                self._leave(slot, accepted=False)
            case Unused():
                self._leave(slot, accepted=False)
            case _:
                assert_never(report)

    def _sent(self, slot: Slot, at: float) -> None:
        if slot.sent_at > -inf:
            return
        slot.sent_at = at
        self._context.metrics.sent(
            self.label,
            slot.route,
            lateness=at - slot.due_at,
            early=at < slot.not_before,
            request_id=slot.request_id,
        )
        self._queues[slot.route].queue.note_sent(at)
        self.allowance.count_send(at)
        self._spend(slot, at)

    def _spend(self, slot: Slot, at: float) -> None:
        """Keep the distance from a send, or from a try that never left."""
        queue = self._queues[slot.route]
        if not queue.paced:
            return
        queue.queue.spend(slot, at)
        self._context.turns.used(queue)
        if queue.queue.given_back(slot):
            self.pump()

    def _leave(self, slot: Slot, *, accepted: bool) -> None:
        """Take back the room a slot had in flight, once, and let the next request have it."""
        if slot.is_open:
            slot.is_open = False
            queue = self._queues[slot.route].queue
            queue.given_back(slot)
            queue.ended(slot, self._context.clock.monotonic(), accepted=accepted)
            self.allowance.ended(slot, accepted=accepted)
            self.pump()

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

    def idle_from(self) -> float:
        """When the account can be dropped without losing its pace or hold (`inf`: in use)."""
        if self.allowance.in_flight or any(queue.depth for queue in self.queues):
            return inf
        return max(0.0, self.allowance.hold_until(), *(one.pace_due() for one in self.queues))

    def state(self, now: float) -> AccountState:
        """Return what is known of the account."""
        return AccountState(
            name=self.label,
            routes=tuple(queue.state(now) for queue in self.queues),
            in_flight=self.allowance.in_flight,
            hold_remaining_seconds=self.allowance.hold_left(),
        )


def _first_arrival(queue: AccountQueue) -> float:
    first = queue.waiters.first
    return inf if first is None else first.number
