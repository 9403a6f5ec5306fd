"""Lines of waiters, and who may send when: the accounts owns time.

A request waits in the queue of its account and route. When the account is open (no hold, no probe
in the air, room in flight) and the queue's pace is due, the slot is offered to the first waiter
that is still connected. Nothing is booked on arrival, so a caller who leaves costs nothing. The
slot comes back as a report: sent, answered, refused, or given back unused.

Decisions are synchronous (`Account.pump`); the only thing that waits is the caller's own task. The
arithmetic is in rules/pace.py; which accounts exist is up to accounts.py.
"""

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final

from proxy.clock import Clock, Timer
from proxy.pacing.turns import FREE, NOT_OURS, Alone, Lease, Turns
from proxy.problems import Problem, draining, store_unavailable
from proxy.retries import RetryRules
from proxy.rules.pace import (
    Hold,
    Pace,
    RetryBudget,
    hold_after,
    predicted_wait,
    return_after,
)
from proxy.rules.state import AccountState, QueueState
from proxy.settings import Pacing
from proxy.telemetry.metrics import Metrics

_A_MOMENT: Final = 0.005  # seconds in which a caller who was there a moment ago still is


@dataclass(slots=True, kw_only=True)
class Shared:
    """What all accounts have in common; `pacing` and `patience` are replaced on reload."""

    clock: Clock
    metrics: Metrics
    random: Callable[[], float]
    pacing: Pacing
    patience: RetryRules
    started_at: float
    turns: Turns = field(default_factory=Alone)
    draining: bool = False
    arrivals: int = 0

    def next_arrival(self) -> int:
        """Return the number of a request in order of arrival."""
        self.arrivals += 1
        return self.arrivals


class Account:
    """One service account: its queues, its hold, what it has in flight."""

    def __init__(self, shared: Shared, key: str, label: str, *, interval: float | None) -> None:
        self.key = key
        self.label = label
        self.hold: Hold | None = None
        self.in_flight = 0
        self.own_interval = interval
        self.may_be_another = False  # whose it is could not be asked; the other has its own pace
        self._shared = shared
        self._clock = shared.clock
        self._queues: dict[str, Queue] = {}
        self._probe: Slot | None = None
        self._budget = RetryBudget()
        self._held_seconds = 0.0
        self._held_counted = 0.0
        self._opened_at = 0.0
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        waiting = sum(queue.depth for queue in self._queues.values())
        return f"<Account {self.label}: {waiting} waiting, {self.in_flight} in flight>"

    @property
    def interval(self) -> float:
        """Seconds between two sends on a paced route, as configured now."""
        own = self.own_interval
        return self._shared.pacing.interval if own is None else own

    @property
    def queues(self) -> tuple["Queue", ...]:
        """The account's queues, one for each route it has used."""
        return tuple(self._queues.values())

    def queue(self, route: str, *, paced: bool) -> "Queue":
        """Return the account's queue on that route."""
        queue = self._queues.get(route)
        if queue is None:
            queue = self._queues[route] = Queue(self, self._shared, route, paced=paced)
            self._shared.metrics.queue_opened(self.label, route)
        return queue

    def hold_remaining(self) -> float:
        """Return the seconds until the account's silence ends."""
        return self.hold.remaining(self._clock.monotonic()) if self.hold else 0.0

    def held_seconds(self) -> float:
        """Return the seconds this account has spent on hold so far, the running hold included."""
        running = self.hold.kept(self._clock.monotonic()) if self.hold else 0.0
        return self._held_seconds + running

    def count_hold(self) -> None:
        """Count the seconds on hold that were not counted yet, those of a running hold too."""
        held = self.held_seconds()
        if held > self._held_counted:
            self._shared.metrics.held(self.label, held - self._held_counted)
            self._held_counted = held

    def idle_from(self) -> float:
        """Return from when on forgetting this account changes nothing (`inf`: it is in use)."""
        if self.in_flight or any(queue.depth for queue in self._queues.values()):
            return inf
        dues = [queue.pace_due() for queue in self._queues.values()]
        return max(dues, default=0.0) if self.hold is None else max(self.hold.until, *dues, 0.0)

    def state(self, now: float) -> AccountState:
        """Return what is known of the account."""
        return AccountState(
            name=self.label,
            routes=tuple(
                QueueState(
                    name=queue.route,
                    queue_depth=queue.depth,
                    oldest_seconds=queue.oldest_seconds(now),
                    interval=queue.interval,
                    sent=queue.sent_count,
                    last_gap_seconds=queue.last_gap,
                )
                for queue in self._queues.values()
            ),
            in_flight=self.in_flight,
            hold_remaining_seconds=self.hold.remaining(now) if self.hold else 0.0,
        )

    def spend_retry(self) -> bool:
        """Spend one re-send of the account's budget; False when it is used up."""
        share = self._shared.patience.settings.budget
        return self._budget.take(self._clock.monotonic(), share)

    def drain(self) -> None:
        """Refuse everybody who waits."""
        for queue in self._queues.values():
            queue.drain()

    def is_silenced(self, slot: "Slot", now: float) -> bool:
        """Tell whether a hold forbids what was granted that slot: the probe may go when it ends."""
        return self.hold is not None and not (slot is self._probe and self.hold.until <= now)

    def opens_at(self, now: float) -> float:
        """Return when the account may send at all: `inf` while an answer must come first."""
        if self._probe is not None or self.in_flight >= self._shared.pacing.max_in_flight:
            return inf
        return self.hold.until if self.hold else now

    def offers_at(self) -> float:
        """Return when the next slot is to be offered; `inf` if time is not what is waited for."""
        dues = [queue.offers_at() for queue in self._queues.values() if queue.has_waiters()]
        return max(self.opens_at(self._opened_at), min(dues)) if dues else inf

    def pump(self) -> None:
        """Offer every slot that is due, then set the timer for the next one."""
        self._offer_due()
        for queue in self._queues.values():
            queue.see_to_turn()

    def _offer_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock.monotonic()
        while True:
            waiting = [queue for queue in self._queues.values() if queue.has_waiters()]
            if not waiting:
                return
            opens = self.opens_at(now)
            due = [queue for queue in waiting if max(opens, queue.due()) <= now]
            if not due:
                at = max(opens, min(queue.due() for queue in waiting))
                if at < inf:
                    self._timer = self._clock.call_at(at, self.pump)
                return
            min(due, key=Queue.first_arrival).offer(now)

    def grant(self, queue: "Queue", ticket: "Ticket", now: float) -> "Slot":
        """Give the slot that is due to that waiter."""
        due = max(queue.due(), ticket.joined_at, self._opened_at)
        if self.hold is not None:
            due = max(due, self.hold.until)
        slot = Slot(self, queue, ticket, at=now, due_at=min(due, now), not_before=queue.due())
        self.in_flight += 1
        queue.sending = slot if queue.paced else None
        if self.hold is not None:
            self._probe = slot
        return slot

    def note_sent(self, now: float) -> None:
        """Count a send for the retry budget."""
        self._budget.count_send(now)

    def refused(self, slot: "Slot", named: float | None) -> None:
        """Go on hold because the API refused `slot` and asked for `named` seconds (None: no time).

        An echo, the refusal of something sent before the hold or beside the probe, may prolong a
        hold but is no further failure in a row.
        """
        now = self._clock.monotonic()
        refusals = 0 if self.hold is None else self.hold.refusals
        if named is None:
            if self.hold is None or slot is self._probe:
                refusals += 1
            until = now + self._shared.patience.after_refusals(max(1, refusals))
        elif named > 0:
            until = now + named
        else:
            until = slot.sent_at + slot.cost * self.interval  # the normal pace
        self._go_on_hold(now, until, refusals)
        self._shared.turns.held(self.key, until - now)

    def silence(self, seconds: float) -> None:
        """Obey a hold that another replica was told."""
        now = self._clock.monotonic()
        self._go_on_hold(now, now + seconds, 0)
        self.pump()

    def _go_on_hold(self, now: float, until: float, refusals: int) -> None:
        if self.hold is None:
            self._shared.metrics.hold_begun(self.label)
        self.hold = hold_after(self.hold, now=now, until=until, refusals=refusals)

    def leave(self, slot: "Slot", *, accepted: bool) -> None:
        """Take back the room `slot` had in flight; an accepted probe ends a hold that is over."""
        slot.queue.give_back(slot)
        if slot is self._probe:
            self._probe = None
            now = self._clock.monotonic()
            if accepted and self.hold is not None and self.hold.until <= now:
                self._held_seconds += self.hold.kept(now)
                self.hold = None
                self.count_hold()
        self.make_room()

    def take_room(self) -> None:
        """Count an answer as in flight, of which more is to come, until `make_room` is called."""
        self.in_flight += 1

    def make_room(self) -> None:
        """Let somebody else have room in flight."""
        self.in_flight -= 1
        self._opened_at = self._clock.monotonic()
        self.pump()


class Queue:
    """Those of one account who wait on one route, first come first served."""

    def __init__(self, account: Account, shared: Shared, route: str, *, paced: bool) -> None:
        self.account = account
        self.route = route
        self.paced = paced
        self.sending: Slot | None = None
        self.sent_count = 0
        self.last_gap: float | None = None
        self._last_sent_at = -inf
        self.pace = Pace(sent_at=shared.started_at)
        self.lease = FREE
        self._lease_expected_at = -inf
        self._contenders = 1
        self._closed_until = -inf
        self._has_sent = False  # the first pace is that of the start
        self._shared = shared
        self._clock = shared.clock
        self._waiting: list[Ticket] = []  # a heap; who left is still in it, without an offer
        self._cost_waiting = 0.0
        self.depth = 0
        shared.turns.opened(self)

    def __repr__(self) -> str:
        return f"<Queue {self.account.label}/{self.route}: {self.depth} waiting>"

    @property
    def interval(self) -> float:
        """Seconds between two sends on this queue; 0 where the route is not paced."""
        return self.account.interval if self.paced else 0.0

    def due(self) -> float:
        """Return when pace and turn allow the next send: `inf` while one is about to leave."""
        if self.paced and self.sending is not None:
            return inf
        return self.opens_at(self._clock.monotonic())

    def opens_at(self, now: float) -> float:
        """Return when pace and turn allow whoever has the slot to send."""
        return max(self.pace_due(), self.lease.opens(now))

    def pace_due(self) -> float:
        """Return when the pace allows the next send."""
        if not self.paced:
            return 0.0
        return max(self.pace.due(self.interval * self._spread), self._closed_until)

    @property
    def _spread(self) -> int:
        turns = self._shared.turns
        return turns.replicas if self.account.may_be_another else turns.spread

    def apply(self, *, paced: bool) -> None:
        """Obey a route that is paced from now on, or no longer."""
        if paced is not self.paced:
            self.paced = paced
            self._shared.turns.opened(self)

    # What the store asks and tells.

    @property
    def key(self) -> str:
        """Name of the account's state in the store."""
        return self.account.key

    def wants_lease(self) -> bool:
        """True if a waiter could be sent with a lease."""
        return self.has_waiters() and self.account.opens_at(self._clock.monotonic()) < inf

    def pace_left(self) -> float:
        """Return the seconds for which the last send from here keeps the next one back."""
        if not self._has_sent:
            return 0.0
        return max(0.0, self.pace.due(self.interval) - self._clock.monotonic())

    def hold_left(self) -> float:
        """Return the seconds of silence the account has left."""
        return self.account.hold_remaining()

    def lease_granted(self, lease: Lease) -> None:
        """Send with this lease from now on."""
        self.lease = lease
        self._lease_expected_at = lease.at

    def lease_lost(self) -> None:
        """Send nothing until a lease is granted."""
        self.lease = NOT_OURS

    def lease_expected(self, at: float, contenders: int) -> None:
        """Predict waits from this moment, while that many replicas have waiters on the queue."""
        self._lease_expected_at = at
        self._contenders = contenders

    def store_lost(self) -> None:
        """Send without leases, from the moment at which the next one was expected."""
        self.lease = Lease(self._lease_expected_at, inf) if self.paced else FREE
        self._contenders = 1

    def reevaluate(self) -> None:
        """Offer what may be sent now; expire a first waiter that only waited to learn that."""
        self.account.pump()
        if self.has_waiters():
            ticket = self._waiting[0]
            if ticket.offer is not None and ticket.patience_until <= self._clock.monotonic():
                self._expire(ticket, ticket.offer, 0.0)

    def keep_distance(self, replicas: int) -> None:
        """Send nothing for an interval, or for `replicas` of them after a send of this replica."""
        self._closed_until = max(
            self._clock.monotonic() + self.interval, self.pace.due(self.interval * replicas)
        )

    def obey_hold(self, seconds: float) -> None:
        """Obey a hold of which another replica was told."""
        self.account.silence(seconds)

    def refuse_waiters(self) -> None:
        """Refuse everybody who waits: there is no store to keep the pace."""
        self._refuse_all("refused", store_unavailable)

    def see_to_turn(self) -> None:
        """Have a turn come if somebody here could use it, and let others have it if not."""
        if self.sending is not None and self.paced:
            return  # it is being used
        if self.wants_lease():
            self._shared.turns.wanted(self)
        else:
            self._shared.turns.unused(self)

    def offers_at(self) -> float:
        """Return when the first in the queue may be offered a slot, by the pace alone."""
        return max(self.due(), self._waiting[0].joined_at)

    def oldest_seconds(self, now: float) -> float:
        """Return how long the first in the queue has waited."""
        return now - self._waiting[0].joined_at if self.has_waiters() else 0.0

    def has_waiters(self) -> bool:
        """Tell whether anybody waits; forgets those at the front who left."""
        while self._waiting and self._waiting[0].offer is None:
            heapq.heappop(self._waiting)
        return bool(self._waiting)

    def first_arrival(self) -> int:
        """Return the arrival number of the first in the queue."""
        return self._waiting[0].number

    def predicted_wait(self, ticket: "Ticket") -> float:
        """Return the seconds until a request of this arrival number would be sent."""
        now = self._clock.monotonic()
        ahead = self._cost_waiting
        if ticket.has_joined:  # coming back, to the front
            ahead = sum(
                other.cost
                for other in self._waiting
                if other.offer is not None and other.number < ticket.number
            )
        lease = self.lease.opens(now)
        due = max(self.pace_due(), self._lease_expected_at if lease == inf else lease)
        if self.sending is not None:
            due = max(due, now) + self.sending.cost * self.interval
        hold = self.account.hold
        return predicted_wait(
            now=now,
            due=max(due, hold.until) if hold else due,
            cost_ahead=ahead,
            interval=self.interval * max(self._contenders, self._spread),
        )

    def admit(self, ticket: "Ticket", limit: float) -> None:
        """Refuse a newcomer who would wait longer than `limit` seconds, or finds no place.

        Who will not wait at all is admitted only if a slot is free: the prediction does not know
        when the answers come that must come first.
        """
        if self._shared.draining:
            raise draining()
        self._refuse_without_store()
        if self._is_free():
            return
        wait = self.predicted_wait(ticket)
        has_place = self.depth < self._shared.pacing.max_queue
        if has_place and wait <= limit and (limit > 0 or self._is_free(asked=False)):
            return
        self._note_wait(ticket, "refused", 0.0)
        raise Problem(
            "queue-full",
            f"A request sent now would wait {wait:.1f} s.",
            retry_after=self._return_after(wait, limit),
            fields={"predicted_wait": round(wait, 3)},
        )

    async def slot(self, ticket: "Ticket", limit: float) -> "Slot":
        """Wait up to `limit` seconds for a slot, in order of arrival.

        A limit of 0 is for whoever takes a slot that is free, one below it for whoever is too late
        even for that. A caller who is cancelled gives place or slot back; one found gone is
        cancelled. Raises the Problem `wait-expired` when the time is over, `draining` when the
        proxy shuts down.
        """
        if self._shared.draining:
            raise draining()
        self._refuse_without_store()
        now = ticket.joined_at = self._clock.monotonic()
        if limit < 0:
            raise self._expired(ticket, limit)
        if self._is_free() and ticket.is_present():
            ticket.deadline = now + limit if limit else inf
            self._note_wait(ticket, "sent", 0.0)
            return self.account.grant(self, ticket, now)
        patience = self._shared.turns.answer_timeout  # to learn whether a slot is free takes time
        ticket.deadline = now + max(limit, patience)
        ticket.patience_until = now + limit if limit < patience else inf
        offer: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        ticket.offer = offer
        expiry = self._clock.call_at(ticket.deadline, lambda: self._expire(ticket, offer, limit))
        self._enter(ticket)
        self.account.pump()
        try:
            slot = await offer
        except asyncio.CancelledError:
            if offer.cancelled():
                self._note_wait(ticket, "abandoned")
            elif offer.exception() is None:  # a slot came in the very step of the cancellation
                self._note_wait(ticket, "abandoned")
                offer.result().close()
            raise
        finally:
            expiry.cancel()
            self._withdraw(ticket)
            self.see_to_turn()
        self._note_wait(ticket, "sent")
        return slot

    def offer(self, now: float) -> None:
        """Offer the slot that is due to the first waiter; one that cannot use it is dropped.

        That is whoever has gone, which the waiting task may not have been told yet, and whoever is
        past the deadline, whose timer is about to say so.
        """
        ticket = heapq.heappop(self._waiting)
        offer = ticket.offer
        self._withdraw(ticket)
        if offer is None or offer.done() or now > ticket.deadline:
            return
        if ticket.is_present():
            offer.set_result(self.account.grant(self, ticket, now))
        else:
            offer.cancel()

    def drain(self) -> None:
        """Refuse everybody who waits."""
        self._refuse_all("drained", draining)

    def _refuse_all(self, outcome: str, problem: Callable[[], Problem]) -> None:
        for ticket in self._waiting:
            if ticket.offer is not None and not ticket.offer.done():
                self._note_wait(ticket, outcome)
                ticket.offer.set_exception(problem())

    def _refuse_without_store(self) -> None:
        if self.paced and self._shared.turns.is_refusing:
            raise store_unavailable()

    def sent(self, slot: "Slot", at: float) -> None:
        """Note that `slot` was used: its request left at `at`."""
        self._shared.metrics.sent(
            self.account.label,
            self.route,
            lateness=at - slot.due_at,
            early=at < slot.not_before,
            request_id=slot.request_id,
        )
        self.last_gap = at - self._last_sent_at if self.sent_count else None
        self.sent_count, self._last_sent_at = self.sent_count + 1, at
        self.account.note_sent(at)
        self._spend(slot, at)

    def not_sent(self, slot: "Slot") -> None:
        """Note a try that never left; the next one keeps the distance all the same."""
        self._spend(slot, self._clock.monotonic())

    def give_back(self, slot: "Slot") -> None:
        """Take back a slot of which nothing was reported: whoever is next may have it."""
        if self.sending is slot:
            self.sending = None

    def _spend(self, slot: "Slot", at: float) -> None:
        if not self.paced:
            return
        self.pace, self._has_sent = Pace(sent_at=at, cost=slot.cost), True
        self._shared.turns.used(self)
        if self.sending is slot:
            self.sending = None
            self.account.pump()

    def _is_free(self, *, asked: bool = True) -> bool:
        """Tell whether a newcomer could be sent at once; not `asked`, as far as we know here."""
        now = self._clock.monotonic()
        due = self.due() if asked or self.sending is not None else self.pace_due()
        return not self.has_waiters() and max(self.account.opens_at(now), due) <= now

    def _enter(self, ticket: "Ticket") -> None:
        heapq.heappush(self._waiting, ticket)
        self._cost_waiting += ticket.cost
        self.depth += 1
        if len(self._waiting) > 2 * self.depth + 16:  # mostly people who left
            self._waiting = [waiter for waiter in self._waiting if waiter.offer is not None]
            heapq.heapify(self._waiting)

    def _withdraw(self, ticket: "Ticket") -> None:
        if ticket.offer is not None:
            ticket.offer = None
            self._cost_waiting -= ticket.cost
            self.depth -= 1
            if self.depth == 0:
                self._cost_waiting = 0.0  # sums of fractions leave a rounding error
                self._waiting.clear()

    def _expire(self, ticket: "Ticket", offer: "asyncio.Future[Slot]", limit: float) -> None:
        self.account.pump()  # a slot due at this very moment is still in time
        if not offer.done():
            offer.set_exception(self._expired(ticket, limit))

    def _expired(self, ticket: "Ticket", limit: float) -> Problem:
        limit = max(0.0, limit)
        self._note_wait(ticket, "expired")
        wait = self.predicted_wait(Ticket(self._shared.next_arrival()))
        return Problem(
            "wait-expired",
            f"No slot came within {limit:.1f} s.",
            retry_after=self._return_after(wait, limit),
        )

    def _return_after(self, wait: float, limit: float) -> int:
        excess = wait - limit if wait > limit else min(wait, self.interval)
        return return_after(excess, jitter=self._shared.random())

    def _note_wait(self, ticket: "Ticket", outcome: str, seconds: float | None = None) -> None:
        if seconds is None:
            seconds = self._clock.monotonic() - ticket.joined_at
        self._shared.metrics.waited(
            self.account.label, self.route, outcome, seconds, request_id=ticket.request_id
        )


class Ticket:
    """A request's place in the order of arrival; it keeps its number when it is sent again."""

    __slots__ = (
        "cost",
        "deadline",
        "is_present",
        "joined_at",
        "number",
        "offer",
        "patience_until",
        "request_id",
    )

    def __init__(
        self,
        number: int,
        *,
        cost: float = 1.0,
        is_present: Callable[[], bool] = lambda: True,
        request_id: str = "",
    ) -> None:
        self.number = number
        self.request_id = request_id
        self.cost = cost
        self.is_present = is_present
        self.joined_at = -inf
        self.deadline = inf
        self.patience_until = inf  # who will wait no longer than it takes to learn of a free slot
        self.offer: asyncio.Future[Slot] | None = None

    @property
    def has_joined(self) -> bool:
        """Whether it was in the queue before, and so goes to the front when it comes back."""
        return self.joined_at > -inf

    def __lt__(self, other: "Ticket") -> bool:
        return self.number < other.number


class Slot:
    """The right to send one request now; report what became of it, then close it.

    Closing a slot of which nothing was reported gives it back unused.
    """

    __slots__ = (
        "_account",
        "_granted_at",
        "_open",
        "_ticket",
        "due_at",
        "not_before",
        "queue",
        "sent_at",
    )

    def __init__(  # noqa: PLR0913 -- whose it is, and three moments by name
        self,
        account: Account,
        queue: Queue,
        ticket: Ticket,
        *,
        at: float,
        due_at: float,
        not_before: float,
    ) -> None:
        self._account = account
        self._granted_at = at
        self._open = True
        self._ticket = ticket
        self.queue = queue
        self.due_at = due_at
        self.not_before = not_before
        self.sent_at = -inf

    @property
    def cost(self) -> float:
        """What a send costs, in intervals."""
        return self._ticket.cost

    @property
    def request_id(self) -> str:
        """Whose slot it is."""
        return self._ticket.request_id

    def may_leave(self, now: float) -> bool:
        """Tell whether the slot may still be used: to connect takes time, in which much happens.

        The API may have asked for silence, the pace have become another, the turn have run out, and
        the caller have gone or be past the deadline.
        """
        return (
            not self._account.is_silenced(self, now)
            and self.queue.opens_at(now) <= now <= self._ticket.deadline
            and (now < self._granted_at + _A_MOMENT or self._ticket.is_present())
        )

    def sent(self, at: float) -> None:
        """Report that the request's bytes were handed to the transport at monotonic time `at`."""
        if self.sent_at == -inf:
            self.sent_at = at
            self.queue.sent(self, at)

    def not_sent(self) -> None:
        """Report that the request provably never left."""
        self.queue.not_sent(self)
        self.close()

    def answered(self) -> None:
        """Report an answer that is not a refusal."""
        self._leave(accepted=True)

    def refused(self, named: float | None) -> None:
        """Report a 429 that asks for `named` seconds of silence (None: it names no usable time)."""
        self._account.refused(self, named)
        self._leave(accepted=False)

    def close(self) -> None:
        """Give back whatever is left of the slot."""
        self._leave(accepted=False)

    def _leave(self, *, accepted: bool) -> None:
        if self._open:
            self._open = False
            self._account.leave(self, accepted=accepted)
