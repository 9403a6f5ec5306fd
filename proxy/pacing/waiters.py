"""The tickets of one queue, in sending order.

Theory of operation. Callers of one queue take turns: weighted round robin between callers, first
come first served within one. It is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).
Each caller has a virtual time at which its next request starts; a send of cost c moves it on by c /
weight. The caller with the smallest virtual start goes next. A new caller starts at the virtual
time of the queue, that of the last send. So it waits one round at most, however many requests the
others have, and it gains nothing by having been away. A request that comes back, because the API
refused it or it lost its slot, goes before all others: its caller's turn is already counted. The
tickets of one group are sent as one, so those of one caller together cost what one costs.

Invariants: `first` is always a ticket that waits. `depth` and `cost` count the tickets that wait.
A ticket that left deeper in a heap stays there until it comes to the front, or until most of the
heap has left. With one caller the order is that of arrival.
"""

import heapq
from collections.abc import Hashable, Iterator
from itertools import chain
from math import floor, inf
from typing import Final

from proxy.pacing.slot import Ending, Ticket

_KEPT: Final = 16  # tickets, or callers, that left and are not worth tidying up
_DIGITS: Final = 9  # of virtual times, so that sums of fractions meet where they should
_ROUNDING: Final = 1e-6


class _CallerTickets:
    """The tickets of one caller, by arrival; the first of its heap always waits."""

    __slots__ = ("cost", "depth", "groups", "heap", "start", "weight")

    def __init__(self, start: float) -> None:
        self.heap: list[Ticket] = []
        self.start = start  # virtual time of the next send
        self.weight = 1
        self.cost = 0.0
        self.depth = 0
        self.groups: dict[object, int] = {}  # how many tickets of each wait

    def waiting(self) -> Iterator[Ticket]:
        """All that wait, in no order."""
        return (ticket for ticket in self.heap if ticket.offer is not None)

    def add(self, ticket: Ticket) -> None:
        heapq.heappush(self.heap, ticket)
        self.weight = ticket.weight
        if not self.has_group_of(ticket):
            self.cost += ticket.cost
        if ticket.group is not None:
            self.groups[ticket.group] = self.groups.get(ticket.group, 0) + 1
        self.depth += 1
        if len(self.heap) > 2 * self.depth + _KEPT:
            self.heap = list(self.waiting())
            heapq.heapify(self.heap)

    def remove(self, ticket: Ticket) -> None:
        """Remove a ticket, whose offer is gone, from the counts."""
        self.depth -= 1
        if self.depth == 0:
            self.cost = 0.0  # sums of fractions leave a rounding error
            self.heap.clear()
            self.groups.clear()
            return
        if ticket.group is not None:
            self.groups[ticket.group] -= 1
            if not self.groups[ticket.group]:
                del self.groups[ticket.group]
        if not self.has_group_of(ticket):
            self.cost -= ticket.cost
        while self.heap[0].offer is None:
            heapq.heappop(self.heap)

    def has_group_of(self, ticket: Ticket) -> bool:
        """True if a ticket of the same group waits."""
        return ticket.group is not None and ticket.group in self.groups

    def cost_before(self, ticket: Ticket) -> float:
        """Return the cost of all tickets before one of this caller, which may be a new request."""
        is_one_of_many = self.has_group_of(ticket)
        if not ticket.has_joined and not is_one_of_many:
            return self.cost
        earlier = [ticket.number]
        if is_one_of_many:
            earlier += [one.number for one in self.waiting() if one.group is ticket.group]
        return sum(one.cost for one in self.to_send() if one.number < min(earlier))

    def to_send(self) -> Iterator[Ticket]:
        """All waiting tickets in order, only the first of each group."""
        seen: set[object] = set()
        for ticket in sorted(self.waiting()):
            if ticket.group is None:
                yield ticket
            elif ticket.group not in seen:
                seen.add(ticket.group)
                yield ticket

    def cost_until(self, virtual: float) -> float:
        """Return the cost of the tickets that start at that virtual time or before.

        Each is assumed to cost what the first one costs.
        """
        if not self.depth or self.start > virtual:
            return 0.0
        each = self.heap[0].cost
        rounds = floor((virtual - self.start) * self.weight / each + _ROUNDING) + 1
        return min(self.cost, rounds * each)


class Waiters:
    """Tickets in order; a ticket waits while it has an offer."""

    __slots__ = (
        "_by_caller",
        "_finishes",
        "_ready",
        "_returned",
        "_virtual",
        "cost",
        "depth",
        "earliest",
    )

    def __init__(self) -> None:
        self._returned = _CallerTickets(-inf)
        self._by_caller: dict[Hashable, _CallerTickets] = {}
        self._ready: list[tuple[float, int, Hashable]] = []  # by caller; some are out of date
        self._finishes: dict[Hashable, float] = {}  # virtual ends of the last sends
        self._virtual = 0.0
        self.cost = 0.0  # of all that wait, in intervals
        self.depth = 0  # how many wait
        self.earliest = inf  # no deadline of one that waits is earlier

    def __repr__(self) -> str:
        return f"<Waiters: {self.depth} of {len(self._by_caller)} callers>"

    def __iter__(self) -> Iterator[Ticket]:
        """All that wait, in no order."""
        return chain.from_iterable(tickets.waiting() for tickets in self._all())

    @property
    def first(self) -> Ticket | None:
        """The ticket that goes next."""
        if self._returned.depth:
            return self._returned.heap[0]
        while self._ready:
            start, _, caller = self._ready[0]
            tickets = self._by_caller.get(caller)
            if tickets is not None and tickets.start == start:
                return tickets.heap[0]
            heapq.heappop(self._ready)
        return None

    @property
    def oldest(self) -> Ticket | None:
        """The ticket that has waited longest."""
        firsts = [tickets.heap[0] for tickets in self._all() if tickets.depth]
        return min(firsts, key=lambda ticket: ticket.joined_at, default=None)

    def add(self, ticket: Ticket) -> None:
        """Take in a ticket, which has an offer."""
        self.depth += 1
        tickets = self._returned if ticket.has_returned else self._by_caller.get(ticket.caller)
        is_new = tickets is None
        if tickets is None:
            tickets = self._by_caller[ticket.caller] = _CallerTickets(self._start_of(ticket.caller))
        self.earliest = min(self.earliest, ticket.deadline)
        before = tickets.cost
        tickets.add(ticket)
        self.cost += tickets.cost - before
        if is_new:
            self._get_ready(ticket.caller, tickets)

    def remove(self, ticket: Ticket) -> None:
        """Let a ticket go, with its offer; nothing happens if it does not wait."""
        if ticket.offer is None:
            return
        ticket.offer = None
        self.depth -= 1
        tickets = self._returned if ticket.has_returned else self._by_caller[ticket.caller]
        before = tickets.cost
        tickets.remove(ticket)
        self.cost += tickets.cost - before
        if not tickets.depth and tickets is not self._returned:
            del self._by_caller[ticket.caller]
        if self.depth == 0:
            self.cost = self._virtual = 0.0
            self.earliest = inf
            self._ready.clear()
            self._finishes.clear()

    def served(self, ticket: Ticket) -> None:
        """Advance the virtual time of a caller that got a slot, so that the others come first."""
        if self.depth == 0 or ticket.has_returned:
            return
        tickets = self._by_caller.get(ticket.caller)
        start = self._start_of(ticket.caller) if tickets is None else tickets.start
        finish = round(start + ticket.cost / ticket.weight, _DIGITS)
        self._virtual = max(self._virtual, start)
        self._finishes[ticket.caller] = finish
        if tickets is not None:
            tickets.start = finish
            self._get_ready(ticket.caller, tickets)
        if len(self._finishes) > 2 * len(self._by_caller) + _KEPT:
            self._finishes = {
                caller: end for caller, end in self._finishes.items() if end > self._virtual
            }

    def end(self, ending: Ending) -> None:
        """End every wait without a slot."""
        for ticket in self:
            ticket.end(ending)

    # What a newcomer would meet

    def find_earliest(self) -> None:
        """Set `earliest` to the earliest deadline of those that wait."""
        self.earliest = min((ticket.deadline for ticket in self), default=inf)

    def cost_before(self, ticket: Ticket) -> float:
        """Return the cost of all that go before a ticket that is not in the queue."""
        if ticket.had_slot:
            return sum(other.cost for other in self._returned.waiting() if other < ticket)
        own = self._by_caller.get(ticket.caller)
        ahead = 0.0 if own is None else own.cost_before(ticket)
        virtual = self._virtual_start(ticket, ahead)
        return self._returned.cost + sum(
            ahead if tickets is own else tickets.cost_until(virtual)
            for tickets in self._by_caller.values()
        )

    def cost_at_deadlines(self, ticket: Ticket) -> Iterator[tuple[float, float]]:
        """Yield the deadline of each waiter that a new request would delay, and the cost before it.

        That cost does not include the new request.
        """
        own = self._by_caller.get(ticket.caller)
        if own is not None and own.has_group_of(ticket):
            return  # it goes with another one
        virtual = self._virtual_start(ticket, 0.0 if own is None else own.cost)
        order: list[tuple[float, int, Ticket]] = []
        for tickets in self._by_caller.values():
            if tickets is own:
                continue  # they go before it
            start = tickets.start
            for other in tickets.to_send():
                order.append((start, other.number, other))
                start = round(start + other.cost / tickets.weight, _DIGITS)
        cost = self._returned.cost + (0.0 if own is None else own.cost)
        for start, _, other in sorted(order):
            if start > virtual:
                yield other.deadline, cost
            cost += other.cost

    def _virtual_start(self, ticket: Ticket, ahead: float) -> float:
        """Return a ticket's virtual start behind others of its caller with that cost."""
        tickets = self._by_caller.get(ticket.caller)
        if tickets is None:
            return self._start_of(ticket.caller)
        return round(tickets.start + ahead / tickets.weight, _DIGITS)

    def _start_of(self, caller: Hashable) -> float:
        return max(self._virtual, self._finishes.get(caller, -inf))

    def _get_ready(self, caller: Hashable, tickets: _CallerTickets) -> None:
        heapq.heappush(self._ready, (tickets.start, tickets.heap[0].number, caller))
        if len(self._ready) > 2 * len(self._by_caller) + _KEPT:
            self._ready = [
                (one.start, one.heap[0].number, name) for name, one in self._by_caller.items()
            ]
            heapq.heapify(self._ready)

    def _all(self) -> Iterator[_CallerTickets]:
        return chain((self._returned,), self._by_caller.values())
