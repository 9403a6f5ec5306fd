"""One queue of an account, as callers wait in it and as a store sees it.

A `Queue` knows no account and no clock; here it meets both. This is what pacing hands to a store
(`SharedQueue` in turns.py) and to callers. Who is sent next is the account's decision, which the
queue asks for through `Scheduler`.
"""

from dataclasses import replace
from math import inf
from typing import Protocol

from proxy.pacing.allowance import Allowance
from proxy.pacing.holding import Holding, HoldOrder
from proxy.pacing.queue import Queue
from proxy.pacing.slot import Ending, Slot, Ticket
from proxy.pacing.turns import HoldLeft, Lease
from proxy.rules.pace import fits, predicted_wait
from proxy.rules.returns import Returns
from proxy.rules.state import QueueState


class Scheduler(Protocol):
    """What a queue asks of its account."""

    def pump(self) -> None:
        """Offer every slot that is due."""
        ...

    def obey_hold(self, left: HoldLeft, queue: "AccountQueue | None") -> None:
        """Hold one queue or the whole account (None), as another replica was told to."""
        ...

    def obey_end_of_hold(self, queue: "AccountQueue | None") -> None:
        """End a hold that is over, as another replica has seen."""
        ...

    def grant(self, queue: "AccountQueue", ticket: Ticket, now: float) -> Slot:
        """Give the slot that is due to that ticket."""
        ...


class AccountQueue:
    """A queue in its account, as callers wait in it and as a store sees it."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_turns",
        "allowance",
        "holding",
        "joined",
        "lease_name",
        "queue",
        "returns",
        "scheduler",
        "waiters",
    )

    def __init__(
        self, scheduler: Scheduler, allowance: Allowance, route: str, *, paced: bool
    ) -> None:
        context = allowance.context
        self.scheduler = scheduler
        self.allowance = allowance
        self.holding = Holding()  # of this route alone
        self.queue = Queue(route, paced=paced, started_at=context.started_at)
        self.waiters = self.queue.waiters
        self.returns = Returns()
        self.joined: tuple[AccountQueue, ...] = ()  # they keep one pace with this queue
        self._clock = context.clock
        self._turns = context.turns
        self.lease_name = context.lease_name(route)
        self._turns.opened(self)

    def __repr__(self) -> str:
        return f"<AccountQueue {self.allowance.label}/{self.route}: {self.depth} waiting>"

    @property
    def key(self) -> str:
        """Name of the account's state in the store."""
        return self.allowance.key

    @property
    def route(self) -> str:
        """The route's name."""
        return self.queue.route

    @property
    def paced(self) -> bool:
        """True if a send needs a lease; a queue without one obeys holds all the same."""
        return self.queue.paced

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return self.waiters.depth

    @property
    def interval(self) -> float:
        """Seconds between two sends on this queue; 0 where the route is not paced."""
        return self.allowance.interval if self.queue.paced else 0.0

    @property
    def lease(self) -> Lease:
        """The lease as it was last granted or lost."""
        return self.queue.lease

    def rename(self, route: str) -> None:
        """Go on as the queue of another route, which takes what this one took."""
        self.queue.route = route

    def inherit(self, other: "AccountQueue") -> None:
        """Go on with the pace and the hold of a queue that took the same paths."""
        self.keep_pace_of(other)
        hold = other.holding.hold
        if hold is not None:
            self.holding.prolong(
                HoldOrder(
                    at=hold.since,
                    until=hold.until,
                    named_until=hold.named_until,
                    refusals=hold.refusals,
                    limit=hold.limit,
                )
            )

    def keep_pace_of(self, other: "AccountQueue") -> None:
        """Keep the distance from the last send of another queue, too."""
        self.queue.inherit(other.queue, self.allowance.interval)

    def apply(self, *, paced: bool) -> None:
        """Obey a route that is paced from now on, or no longer."""
        old, self.lease_name = self.lease_name, self.allowance.context.lease_name(self.route)
        if self.lease_name != old:
            if self.paced and paced:
                self.keep_distance(1)  # another replica may have sent for these paths just now
            self._turns.moved(self, old)
        if paced is not self.paced:
            self.queue.paced = paced
            self._turns.opened(self)

    # When it is due

    def pace_due(self) -> float:
        """Return when the pace allows the next send."""
        return self.queue.pace_due(self.interval * self.allowance.spread)

    def opens_at(self, now: float) -> float:
        """Return when pace and lease allow the holder of a slot to send."""
        return self._in_turn(self.queue.opens_at(now, self.interval * self.allowance.spread))

    def paced_due(self, now: float) -> float:
        """Return when pace and lease allow the next slot: `inf` while one is out and unused."""
        if self.joined and any(other.queue.sending is not None for other in self.joined):
            return inf
        return self._in_turn(self.queue.due(now, self.interval * self.allowance.spread))

    def _in_turn(self, at: float) -> float:
        """Return the first moment from then on that is this replica's."""
        if not self.paced or at == inf:
            return at
        return self._turns.next_moment(at, self.interval)

    def due(self, now: float) -> float:
        """Return when the next slot of this route is due; the account may have to wait longer."""
        return max(self.paced_due(now), self.holding.state.opens_at(now))

    def due_since(self, now: float) -> float:
        """Return since when the next slot of this route has been due, or when it will be."""
        return max(self.paced_due(now), self.holding.state.opens_at(-inf))

    def is_free(self) -> bool:
        """True if a newcomer could be sent at once."""
        now = self._clock.monotonic()
        return not self.depth and max(self.allowance.opens_at(now), self.due(now)) <= now

    def may_be_free(self) -> bool:
        """True if a newcomer could be sent at once, as far as is known without the store."""
        now = self._clock.monotonic()
        is_out = self.queue.sending is not None
        due = self.paced_due(now) if is_out else self._in_turn(self.pace_due())
        opens = max(self.allowance.opens_at(now), self.holding.state.opens_at(now))
        return not self.depth and max(opens, due) <= now

    @property
    def is_in_use(self) -> bool:
        """True if a request waits, or has a slot that it has not used yet."""
        return self.depth > 0 or self.queue.sending is not None

    def backlog_seconds(self, now: float) -> float:
        """Return the seconds until a newcomer behind all waiters would be sent."""
        return self._wait_behind(self.waiters.cost, now)

    def predicted_wait(self, ticket: Ticket) -> float:
        """Return the seconds until a request with this ticket would be sent.

        Until a hold's named end nothing is promised, although probes go sooner.
        """
        return self._wait_behind(self.queue.cost_ahead(ticket), self._clock.monotonic())

    def pushes_out(self, ticket: Ticket) -> bool:
        """True if a waiter that would be sent in time would not be if this newcomer were admitted.

        With one caller, newcomers come last and delay nobody.
        """
        now = self._clock.monotonic()
        return any(
            fits(self._wait_behind(cost, now), deadline - now)
            and not fits(self._wait_behind(cost + ticket.cost, now), deadline - now)
            for deadline, cost in self.waiters.cost_at_deadlines(ticket)
        )

    def _wait_behind(self, cost: float, now: float) -> float:
        """Return the wait behind requests of that cost, in intervals.

        The pace and the hold bound it, and so does room in flight, which answers make: the first
        room may be a whole answer away, and the others follow as the answers do.
        """
        allowance, queue = self.allowance, self.queue
        interval, spread = self.interval, allowance.spread
        held = self.named_left()
        due = self._in_turn(max(queue.predicted_due(now, interval, spread), now + held))
        by_pace = predicted_wait(
            now=now,
            due=due,
            cost_ahead=cost,
            interval=queue.predicted_interval(interval, spread),
        )
        in_flight = allowance.context.pacing.max_in_flight
        without_room = cost + 1 + allowance.in_flight - in_flight
        if without_room <= 0:
            return by_pace
        rounds = 1 + (without_room - 1) / in_flight
        by_room = held + rounds * queue.answer_seconds(now)
        return max(by_pace, by_room)

    def held_seconds(self) -> float:
        """Return the seconds spent on hold so far, those of the present hold included."""
        now = self._clock.monotonic()
        return sum(one.state.held_seconds(now) for one in self._holdings())

    def _holdings(self) -> tuple[Holding, Holding]:
        return self.allowance.holding, self.holding

    def named_left(self) -> float:
        """Return the seconds left of what the API named, or of the hold if that is longer."""
        now = self._clock.monotonic()
        return max(one.state.named_remaining(now) for one in self._holdings())

    def is_clamped(self) -> bool:
        """True if the API named a wait that outlasts the time without a probe."""
        holds = (one.hold for one in self._holdings())
        return any(hold.named_until > hold.until for hold in holds if hold)

    def hold_until(self) -> float:
        """Return when the last hold of this route ends; `-inf` if there is none."""
        return max((one.hold.until for one in self._holdings() if one.hold), default=-inf)

    def end_waits(self, ending: Ending) -> None:
        """End every wait without a slot."""
        for ticket in self.waiters:
            ticket.end(ending)

    def state(self, now: float) -> QueueState:
        """Return what is known of the queue."""
        return replace(
            self.queue.state(now, self.interval),
            predicted_seconds=self.backlog_seconds(now),
            hold_remaining_seconds=self.holding.state.remaining(now),
            hold_named_seconds=self.holding.state.named_remaining(now),
            hold_limit=self.holding.limit,
        )

    # What the store asks and tells

    def order_lease(self) -> None:
        """Ask for a lease if a waiter could use it, else give it up."""
        if self.queue.sending is not None and self.paced:
            return  # it is being used
        if self.wants_lease():
            self._turns.wanted(self)
        else:
            self._turns.unused(self)

    def wants_lease(self) -> bool:
        """True if a waiter could be sent with a lease."""
        now = self._clock.monotonic()
        opens = max(self.allowance.opens_at(now), self.holding.state.opens_at(now))
        return self.depth > 0 and opens < inf

    def pace_left(self) -> float:
        """Seconds for which the last send of this replica keeps the next one back."""
        return self.queue.pace_left(self._clock.monotonic(), self.interval)

    def hold_left(self, *, of_route: bool) -> HoldLeft:
        """The hold of this queue's route alone, or of all routes of its account."""
        now = self._clock.monotonic()
        state = (self.holding if of_route else self.allowance.holding).state
        return HoldLeft(state.remaining(now), state.named_remaining(now))

    def lease_granted(self, lease: Lease) -> None:
        """Send with this lease from now on."""
        self.queue.lease_granted(lease)

    def lease_lost(self) -> None:
        """Send nothing until a lease is granted."""
        self.queue.lease_lost()

    def lease_expected(self, at: float, contenders: int) -> None:
        """Predict waits from this moment, while that many replicas have waiters on the queue."""
        self.queue.lease_expected(at, contenders)

    def store_lost(self) -> None:
        """Send without leases, from the moment at which the next one was expected."""
        self.queue.store_lost()

    def keep_distance(self, replicas: int) -> None:
        """Send nothing for an interval, or for `replicas` of them after a send of this replica."""
        self.queue.keep_distance(self._clock.monotonic(), self.interval, replicas)

    def obey_hold(self, left: HoldLeft, *, of_route: bool) -> None:
        """Obey a hold of which another replica was told."""
        self.scheduler.obey_hold(left, self if of_route else None)

    def obey_end_of_hold(self, *, of_route: bool) -> None:
        """Send again: an answer to another replica has shown that the hold is over."""
        self.scheduler.obey_end_of_hold(self if of_route else None)

    def refuse_waiters(self) -> None:
        """Refuse all waiters: there is no store to keep the pace."""
        self.end_waits(Ending.NO_STORE)

    def reevaluate(self) -> None:
        """Offer what may be sent now; expire a first waiter that only waited to learn that."""
        self.scheduler.pump()
        first = self.waiters.first
        if first is not None and first.undecided_from <= self._clock.monotonic():
            first.end(Ending.EXPIRED)
