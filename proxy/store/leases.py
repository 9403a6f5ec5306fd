"""One pace for several replicas: they take turns on a queue.

A replica whose queue has waiters asks once and is queued among the replicas; the replica that has
sent reports it, and the script (lease.lua) gives the lease to the next one and tells it. So a send
costs one round trip where replicas contend and two where one is alone, and only the first waiter of
a queue costs any. A lease belongs to the queue, not to a caller: if the first waiter hangs up, the
next one uses it. A lease ends some time after it could first be used, unless the replica asks for
it again. A replica that lost it without knowing, because the process stood still, does not use it.

While the store is down each replica spaces its own sends by interval x replicas, each in a phase of
its own (numbers.py), or refuses them.
When it is back, every queue keeps its distance for one interval first, so there is no burst. The
replica that finds no state of an account tells all, and all say again what they knew of it.

Invariants: a queue has at most one seat, and only while the store is up. A queue without a seat has
no lease, unless it is not paced or the store is down. Each send is reported to the store, or is
counted as one that bypassed it.
"""

from collections.abc import Callable, Iterable
from math import inf
from secrets import token_hex
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from proxy.clock import Clock
from proxy.pacing.leases import FREE, HoldLeft, SharedQueue
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.holds import SharedHolds
from proxy.store.numbers import ReplicaNumber
from proxy.store.script import (
    LEASE,
    HoldMessage,
    LeaseMessage,
    LostMessage,
    Name,
    Op,
    OpenMessage,
    OverMessage,
    Script,
    WantedMessage,
    parse_message,
)
from proxy.store.seat import Seat, SeatContext, name_of, obey_hold
from proxy.store.wire import Wire
from proxy.telemetry.metrics import Metrics

_ALL: Final = PREFIX + "all"


class SharedLeases:
    """Leases shared with the other replicas."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        metrics: Metrics,
        random: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._metrics = metrics
        self._script = Script(connection, token_hex(6))
        self._number = ReplicaNumber(connection, self._script.me, clock=clock, random=random)
        self._holds = SharedHolds(self._script, self._report_all_again)
        self._context = SeatContext(
            clock=clock,
            script=self._script,
            found_new_state=self._found_new_state,
            closed=lambda seat: self._seats.pop(seat.name, None),
            sends_often=self._sends_often,
        )
        self._queues: WeakValueDictionary[Name, SharedQueue] = WeakValueDictionary()
        self._seats: dict[Name, Seat] = {}
        self._sends: WeakKeyDictionary[SharedQueue, tuple[float, float]] = WeakKeyDictionary()
        self._names: set[str] = set()  # of leases
        self._abandoned: dict[Name, SharedQueue] = {}  # whose wish the store may still keep
        self._is_shared = False
        connection.went_down.append(self._go_alone)
        connection.came_back.append(self._join)
        connection.closing.append(self._give_up_all)

    def __repr__(self) -> str:
        mode = "shared" if self._is_shared else "alone"
        return f"<SharedLeases {self._script.me}: {mode}, {len(self._seats)} seats>"

    # What queues ask and tell.

    @property
    def replicas(self) -> int:
        """How many replicas there are, as configured."""
        return self._connection.settings.replicas

    @property
    def spread(self) -> int:
        """The number of replicas while the store is down, else 1."""
        return 1 if self._is_shared else self.replicas

    @property
    def number(self) -> int:
        """The number of this replica among all, from 0."""
        return self._number.number

    def next_moment(self, at: float, interval: float) -> float:
        """The first moment from then on in this replica's phase, while the store is down."""
        return at if self._is_shared else self._number.next_in_phase(at, interval)

    @property
    def answer_timeout(self) -> float:
        """How many seconds the store may take to answer."""
        return self._connection.settings.timeout

    @property
    def is_refusing(self) -> bool:
        """True if the store is down and `on_failure` says to refuse."""
        return not self._is_shared and self._connection.settings.on_failure == "reject"

    def opened(self, queue: SharedQueue) -> None:
        """Register a queue that is new, or whose pacing was switched on or off."""
        self._queues[name_of(queue)] = queue
        self._names.add(queue.lease_name)
        if self._is_shared:
            queue.lease_lost()
        else:
            queue.lease_granted(FREE)

    def moved(self, queue: SharedQueue, old: str) -> None:
        """Say under the old name what others have to know, and go on under the new one."""
        name = (queue.key, old)
        if self._queues.get(name) is queue:
            del self._queues[name]
        seat = self._seats.pop(name, None)
        if seat is not None:
            seat.close()
        self.opened(queue)
        if not self._is_shared:
            return
        if seat is not None or queue.pace_left() > 0:
            self._say(Op.SENT, name, span=queue.pace_left(), interval=queue.interval)
            if queue.paced:
                self._seat_of(queue).report_again()
        hold = queue.hold_left(of_route=True)
        if hold:
            self._holds.tell(*name_of(queue), hold)

    def wanted(self, queue: SharedQueue) -> None:
        """Ask for a lease, or for the hold of a queue that is not paced, unless that was done."""
        if not self._is_shared:
            return
        if not queue.paced:
            self.unused(queue)  # it may have been paced before
            self._holds.look(queue)
        elif name_of(queue) not in self._seats:
            self._seat_of(queue).ask()

    def unused(self, queue: SharedQueue) -> None:
        """Give up a lease, or the place among the replicas that want it."""
        seat = self._seats.get(name_of(queue))
        if seat is not None:
            seat.unused()

    def used(self, queue: SharedQueue) -> None:
        """Report a send and, if there are waiters, ask for the next lease in the same command."""
        if not self._is_shared:
            self._metrics.store_bypassed()
            return
        queue.lease_lost()
        self._note_send(queue)
        self._seat_of(queue).report()

    def held(self, key: str, route: str, left: HoldLeft) -> None:
        """Tell all replicas of a hold, of one route or of all ("")."""
        if not self._is_shared:
            self._number.refused()
        elif left:
            self._holds.tell(key, route, left)

    def hold_over(self, key: str, route: str) -> None:
        """Tell all replicas that a hold is over before the API's named wait was."""
        if self._is_shared:
            self._holds.tell_end(key, route)

    def _note_send(self, queue: SharedQueue) -> None:
        now = self._clock.monotonic()
        _, last = self._sends.get(queue, (-inf, -inf))
        self._sends[queue] = (last, now)

    def _sends_often(self, queue: SharedQueue) -> bool:
        before, last = self._sends.get(queue, (-inf, -inf))
        return last - before < queue.interval + LEASE / 2  # for as long as a lease is kept

    def _seat_of(self, queue: SharedQueue) -> Seat:
        seat = self._seats.get(name_of(queue))
        if seat is None:
            seat = self._seats[name_of(queue)] = Seat(queue, self._context)
        return seat

    def _report_holds(self, queues: Iterable[SharedQueue]) -> bool:
        """Tell of the holds of these queues and of their accounts; True if there are any."""
        holds = {(queue.key, ""): queue.hold_left(of_route=False) for queue in queues}
        holds |= {name_of(queue): queue.hold_left(of_route=True) for queue in queues}
        for (key, route), left in holds.items():
            if left:
                self._holds.tell(key, route, left)
        return any(holds.values())

    # Messages of the other replicas.

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel of this replica, and that of all."""
        return PREFIX + self._script.me, _ALL

    async def self_test(self, wire: Wire) -> None:
        """Run the script once, on a key of its own. Raises StoreDown."""
        await self._script.self_test(wire)

    def receive(self, text: str, since: float) -> None:
        """Act on a message that came after `since` (monotonic)."""
        message = parse_message(text, me=self._script.me)
        if isinstance(message, HoldMessage | OpenMessage):
            self._receive_hold(message)
        elif isinstance(message, LostMessage):
            if self._is_shared:
                self._receive_lost(message.key, message.born)
        elif message is not None and self._is_shared:  # leases ended with the store
            self._receive_for_queue(message, since)

    def _receive_hold(self, message: HoldMessage | OpenMessage) -> None:
        key, name = message.name
        for queue in self._queues_of(key):
            if name in {"", queue.lease_name}:
                if isinstance(message, HoldMessage):
                    obey_hold(queue, message.left, of_route=name != "")
                else:
                    queue.obey_end_of_hold(of_route=name != "")

    def _receive_for_queue(
        self, message: LeaseMessage | OverMessage | WantedMessage, since: float
    ) -> None:
        seat = self._seats.get(message.name)
        match message:
            case LeaseMessage():
                self._receive_lease(message, since)
            case OverMessage() if seat is not None:
                if seat.lost(message.stamp):
                    self._metrics.store_bypassed()  # the server's clock was set forward
            case WantedMessage() if seat is not None:
                seat.wanted(message.stamp)

    def _receive_lease(self, message: LeaseMessage, since: float) -> None:
        seat, queue = self._seats.get(message.name), self._queues.get(message.name)
        now = self._clock.monotonic()
        if seat is not None:
            if seat.granted(message.stamp, now + message.wait, since):
                # Not at once: the next message may say that it is over.
                self._clock.call_at(now, seat.queue.reevaluate)
        elif queue is not None:
            self._seat_of(queue).leave()

    def _receive_lost(self, key: str, born: int) -> None:
        """Say again what the store was told of an account and no longer knew when `born` began."""
        has_told = self._report_all_again(key, born)
        if self._report_holds(self._queues_of(key)) or has_told:
            self._metrics.store_bypassed()

    def _found_new_state(self, queue: SharedQueue, born: int) -> None:
        self._report_holds(self._queues_of(queue.key))
        self._report_all_again(queue.key, born)

    def _report_all_again(self, key: str, born: int) -> bool:
        """Report again for queues of which the store was last told before that."""
        queues = [queue for queue in self._queues_of(key) if self._has_told(queue, before=born)]
        for queue in queues:
            self._seat_of(queue).report_again()
        return bool(queues)

    def _has_told(self, queue: SharedQueue, *, before: int) -> bool:
        seat = self._seats.get(name_of(queue))
        if seat is None or seat.stamp is None:
            return queue.pace_left() > 0
        return queue.paced and seat.stamp.born != before

    def _queues_of(self, key: str) -> list[SharedQueue]:
        queues = (self._queues.get((key, name)) for name in self._names)
        return [queue for queue in queues if queue is not None]

    # Failure and return. A reevaluated queue makes its whole account look who may send, so all
    # queues are made ready first.

    def _go_alone(self) -> None:
        self._is_shared = False
        for name, seat in self._seats.items():
            seat.close()
            self._abandoned[name] = seat.queue
        self._seats.clear()
        queues = list(self._queues.values())
        for queue in queues:
            queue.store_lost()
        for queue in queues:
            if self.is_refusing and queue.paced:
                queue.refuse_waiters()
            queue.reevaluate()

    def _give_up_all(self) -> None:
        for seat in list(self._seats.values()):
            seat.leave()

    def _join(self) -> None:
        self._is_shared = True
        queues = list(self._queues.values())
        for queue in queues:
            queue.lease_lost()
            if queue.paced:
                queue.keep_distance(self.replicas)
        self._report_holds(queues)
        for queue in queues:
            if queue.paced and queue.pace_left() > 0:
                self._seat_of(queue).report_again()
            queue.reevaluate()
        abandoned, self._abandoned = self._abandoned, {}
        for name, queue in abandoned.items():
            if name != name_of(queue):
                self._say(Op.LEAVE, name)
            elif name not in self._seats:
                self._seat_of(queue).leave()

    def _say(self, op: Op, name: Name, *, span: float = 0.0, interval: float = 0.0) -> None:
        """Tell the store of a queue by a name that it has no longer."""
        self._script.run(op, *name, span=span, interval=interval, answered=lambda _: None)
