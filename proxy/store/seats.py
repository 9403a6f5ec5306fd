"""The queues that replicas share, by their names in the store, and the seats they have there.

A queue is known as long as pacing keeps it. It has a seat while it wants a lease, holds one, or has
something to report (seat.py).

Invariants: a queue has at most one seat, and only while the store is up (`is_shared`). If the store
lacks or has lost an account's state, holds and last sends are reported again here.
"""

from collections.abc import Iterable, Iterator
from math import inf
from weakref import WeakKeyDictionary, WeakValueDictionary

from proxy.clock import Clock
from proxy.pacing.leases import SharedQueue
from proxy.store.holds import SharedHolds
from proxy.store.script import LEASE, Name, Script
from proxy.store.seat import Seat, SeatContext, name_of


class Seats:
    """The queues of this replica, and their seats; `is_shared` is True while the store is up."""

    def __init__(self, script: Script, *, clock: Clock) -> None:
        self.is_shared = False
        self.holds = SharedHolds(script, self.report_all_again)
        self._clock = clock
        self._context = SeatContext(
            clock=clock,
            script=script,
            found_new_state=self._found_new_state,
            closed=lambda seat: self._by_name.pop(seat.name, None),
            sends_often=self._sends_often,
        )
        self._queues: WeakValueDictionary[Name, SharedQueue] = WeakValueDictionary()
        self._by_name: dict[Name, Seat] = {}
        self._sends: WeakKeyDictionary[SharedQueue, tuple[float, float]] = WeakKeyDictionary()
        self._names: set[str] = set()  # of leases

    def __repr__(self) -> str:
        return f"<Seats: {len(self._by_name)} of {len(self._queues)} queues>"

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    # Queues

    def know(self, queue: SharedQueue) -> None:
        """Register the queue under its name."""
        self._queues[name_of(queue)] = queue
        self._names.add(queue.lease_name)

    def forget(self, queue: SharedQueue, name: Name) -> Seat | None:
        """Remove the queue's name; close and return its seat."""
        if self._queues.get(name) is queue:
            del self._queues[name]
        seat = self._by_name.pop(name, None)
        if seat is not None:
            seat.close()
        return seat

    def queue(self, name: Name) -> SharedQueue | None:
        """Return the queue of that name."""
        return self._queues.get(name)

    def queues(self) -> list[SharedQueue]:
        """Return all queues."""
        return list(self._queues.values())

    def queues_of(self, key: str) -> list[SharedQueue]:
        """Return the queues of an account."""
        queues = (self._queues.get((key, name)) for name in self._names)
        return [queue for queue in queues if queue is not None]

    # Seats

    def get(self, name: Name) -> Seat | None:
        """Return the seat of the queue of that name, if it has one."""
        return self._by_name.get(name)

    def of(self, queue: SharedQueue) -> Seat:
        """Return the queue's seat, a new one if it has none."""
        seat = self._by_name.get(name_of(queue))
        if seat is None:
            seat = self._by_name[name_of(queue)] = Seat(queue, self._context)
        return seat

    def close_all(self) -> None:
        """Close all seats: the store is down."""
        for seat in self:
            seat.close()
        self._by_name.clear()

    def note_send(self, queue: SharedQueue) -> None:
        """Note a send of that queue, from which a seat decides whether to keep the lease."""
        _, last = self._sends.get(queue, (-inf, -inf))
        self._sends[queue] = (last, self._clock.monotonic())

    def _sends_often(self, queue: SharedQueue) -> bool:
        before, last = self._sends.get(queue, (-inf, -inf))
        return last - before < queue.interval + LEASE / 2  # for as long as a lease is kept

    # What the store may have to be told again

    def report_all_again(self, key: str, born: int) -> bool:
        """Report the last sends of an account's queues of which the state of `born` does not know.

        True if there are any.
        """
        queues = [queue for queue in self.queues_of(key) if self._has_told(queue, before=born)]
        for queue in queues:
            self.of(queue).report_again()
        return bool(queues)

    def _has_told(self, queue: SharedQueue, *, before: int) -> bool:
        seat = self._by_name.get(name_of(queue))
        if seat is None or seat.stamp is None:
            return queue.pace_left() > 0
        return queue.paced and seat.stamp.born != before

    def report_holds(self, queues: Iterable[SharedQueue]) -> bool:
        """Report the holds of these queues and of their accounts; True if there are any."""
        holds = {(queue.key, ""): queue.hold_left(of_route=False) for queue in queues}
        holds |= {name_of(queue): queue.hold_left(of_route=True) for queue in queues}
        for (key, route), left in holds.items():
            if left:
                self.holds.tell(key, route, left)
        return any(holds.values())

    def _found_new_state(self, queue: SharedQueue, born: int) -> None:
        self.report_holds(self.queues_of(queue.key))
        self.report_all_again(queue.key, born)
