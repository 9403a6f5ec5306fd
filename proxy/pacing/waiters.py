"""The tickets of one queue, in the order in which they go: by arrival.

Invariants: the first ticket is always one that waits. `depth` and `cost` count the tickets that
wait. A ticket that left deeper in the heap stays there until it comes to the front, or until most
of the heap has left; it keeps neither a caller nor a body alive for longer than that.
"""

import heapq
from collections.abc import Iterator
from typing import Final

from proxy.pacing.slot import Ticket

_KEPT: Final = 16  # tickets that left and are not worth a new heap


class Waiters:
    """Tickets in order; a ticket waits while it has an offer."""

    __slots__ = ("_heap", "cost", "depth")

    def __init__(self) -> None:
        self._heap: list[Ticket] = []
        self.cost = 0.0  # of all that wait, in intervals
        self.depth = 0  # how many wait

    def __repr__(self) -> str:
        return f"<Waiters: {self.depth}>"

    def __iter__(self) -> Iterator[Ticket]:
        """All that wait, in no order."""
        return (ticket for ticket in self._heap if ticket.offer is not None)

    @property
    def first(self) -> Ticket | None:
        """The ticket that goes next."""
        return self._heap[0] if self._heap else None

    def cost_before(self, ticket: Ticket) -> float:
        """Return the cost of all that go before this ticket, which comes back to its place."""
        return sum(other.cost for other in self if other < ticket)

    def add(self, ticket: Ticket) -> None:
        """Take in a ticket, which has an offer."""
        heapq.heappush(self._heap, ticket)
        self.cost += ticket.cost
        self.depth += 1
        if len(self._heap) > 2 * self.depth + _KEPT:
            self._heap = list(self)
            heapq.heapify(self._heap)

    def remove(self, ticket: Ticket) -> None:
        """Let a ticket go, with its offer; nothing happens if it does not wait."""
        if ticket.offer is None:
            return
        ticket.offer = None
        self.cost -= ticket.cost
        self.depth -= 1
        if self.depth == 0:
            self.cost = 0.0  # sums of fractions leave a rounding error
            self._heap.clear()
        else:
            self._drop_departed()

    def _drop_departed(self) -> None:
        while self._heap[0].offer is None:
            heapq.heappop(self._heap)
