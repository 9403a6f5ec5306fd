"""One pace for several replicas: they take turns on a queue.

A replica whose queue has waiters asks once and is queued among the replicas. A replica that has
sent reports it; the script (lease.lua) then gives the lease to the next replica and notifies it. So
a send costs one round trip if replicas contend and two if one is alone, and only the first waiter
of a queue costs any. A lease belongs to the queue, not to a caller: if the first waiter hangs up,
the next one uses it. A lease ends some time after it could first be used, unless the replica asks
for it again. A replica whose process was stopped, and so lost it unnoticed, does not use it.

While the store is down each replica spaces its own sends by interval x replicas, each in its own
phase (numbers.py), or refuses them. When the store is back, every queue first sends nothing for one
interval, so there is no burst. The replica that finds no state of an account tells all others, and
all report what they know of the account again.

Invariants: a queue has at most one seat, and only while the store is up. A queue without a seat has
no lease, unless it is not paced or the store is down. Each send is reported to the store, or is
counted as one that bypassed it.
"""

from collections.abc import Callable
from secrets import token_hex

from proxy.clock import Clock
from proxy.pacing.leases import FREE, HoldLeft, SharedQueue
from proxy.store.connection import Connection
from proxy.store.inbox import Inbox
from proxy.store.numbers import ReplicaNumber
from proxy.store.script import Name, Op, Script
from proxy.store.seat import name_of
from proxy.store.seats import Seats
from proxy.telemetry.metrics import Metrics


class SharedLeases:
    """Leases that the replicas share; `inbox` takes the messages of the others."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        metrics: Metrics,
        random: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._metrics = metrics
        self._script = Script(connection, token_hex(6))
        self._number = ReplicaNumber(connection, self._script.me, clock=clock, random=random)
        self._seats = Seats(self._script, clock=clock)
        self.inbox = Inbox(self._script, self._seats, clock=clock, metrics=metrics)
        self._abandoned: dict[Name, SharedQueue] = {}  # whose wish the store may still keep
        connection.went_down.append(self._go_alone)
        connection.came_back.append(self._join)
        connection.closing.append(self._give_up_all)

    def __repr__(self) -> str:
        mode = "shared" if self._seats.is_shared else "alone"
        return f"<SharedLeases {self._script.me}: {mode}, {len(self._seats)} seats>"

    # What queues ask and tell

    @property
    def replicas(self) -> int:
        """How many replicas there are, as configured."""
        return self._connection.settings.replicas

    @property
    def spread(self) -> int:
        """The number of replicas while the store is down, else 1."""
        return 1 if self._seats.is_shared else self.replicas

    @property
    def number(self) -> int:
        """The number of this replica among all, from 0."""
        return self._number.number

    def next_moment(self, at: float, interval: float) -> float:
        """The first moment from then on in this replica's phase, while the store is down."""
        return at if self._seats.is_shared else self._number.next_in_phase(at, interval)

    @property
    def answer_timeout(self) -> float:
        """How many seconds the store may take to answer."""
        return self._connection.settings.timeout

    @property
    def is_refusing(self) -> bool:
        """True if the store is down and `on_failure` says to refuse."""
        return not self._seats.is_shared and self._connection.settings.on_failure == "reject"

    def opened(self, queue: SharedQueue) -> None:
        """Register a queue that is new, or whose pacing was switched on or off."""
        self._seats.know(queue)
        if self._seats.is_shared:
            queue.lease_lost()
        else:
            queue.lease_granted(FREE)

    def moved(self, queue: SharedQueue, old: str) -> None:
        """Report under the old name what others need to know, and go on under the new one."""
        name = (queue.key, old)
        seat = self._seats.forget(queue, name)
        self.opened(queue)
        if not self._seats.is_shared:
            return
        if seat is not None or queue.pace_left() > 0:
            self._say(Op.SENT, name, span=queue.pace_left(), interval=queue.interval)
            if queue.paced:
                self._seats.of(queue).report_again()
        hold = queue.hold_left(of_route=True)
        if hold:
            self._seats.holds.tell(*name_of(queue), hold)

    def wanted(self, queue: SharedQueue) -> None:
        """Ask for a lease, or for the hold of a queue that is not paced, unless that was done."""
        if not self._seats.is_shared:
            return
        if not queue.paced:
            self.unused(queue)  # it may have been paced before
            self._seats.holds.look(queue)
        elif self._seats.get(name_of(queue)) is None:
            self._seats.of(queue).ask()

    def unused(self, queue: SharedQueue) -> None:
        """Give up a lease, or the place among the replicas that want it."""
        seat = self._seats.get(name_of(queue))
        if seat is not None:
            seat.unused()

    def used(self, queue: SharedQueue) -> None:
        """Report a send and, if there are waiters, ask for the next lease in the same command."""
        if not self._seats.is_shared:
            self._metrics.servers.store_bypassed()
            return
        queue.lease_lost()
        self._seats.note_send(queue)
        self._seats.of(queue).report()

    def held(self, key: str, route: str, left: HoldLeft) -> None:
        """Tell all replicas of a hold, of one route or of all ("")."""
        if not self._seats.is_shared:
            self._number.refused()
        elif left:
            self._seats.holds.tell(key, route, left)

    def hold_over(self, key: str, route: str) -> None:
        """Tell all replicas that a hold is over before the API's named wait was."""
        if self._seats.is_shared:
            self._seats.holds.tell_end(key, route)

    # Failure and return. A reevaluated queue makes its whole account look who may send, so all
    # queues are made ready first.

    def _go_alone(self) -> None:
        self._seats.is_shared = False
        self._abandoned |= {seat.name: seat.queue for seat in self._seats}
        self._seats.close_all()
        queues = self._seats.queues()
        for queue in queues:
            queue.store_lost()
        for queue in queues:
            if self.is_refusing and queue.paced:
                queue.refuse_waiters()
            queue.reevaluate()

    def _give_up_all(self) -> None:
        for seat in self._seats:
            seat.leave()

    def _join(self) -> None:
        self._seats.is_shared = True
        queues = self._seats.queues()
        for queue in queues:
            queue.lease_lost()
            if queue.paced:
                queue.keep_distance(self.replicas)
        self._seats.report_holds(queues)
        for queue in queues:
            if queue.paced and queue.pace_left() > 0:
                self._seats.of(queue).report_again()
            queue.reevaluate()
        abandoned, self._abandoned = self._abandoned, {}
        for name, queue in abandoned.items():
            if name != name_of(queue):
                self._say(Op.LEAVE, name)
            elif self._seats.get(name) is None:
                self._seats.of(queue).leave()

    def _say(self, op: Op, name: Name, *, span: float = 0.0, interval: float = 0.0) -> None:
        """Report a queue to the store under its former name."""
        self._script.run(op, *name, span=span, interval=interval, answered=lambda _: None)
