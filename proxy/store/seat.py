"""The seat of one queue: its place among the replicas that want the lease.

A seat exists while the queue wants a lease, holds one, or has something to report. It runs one
command at a time, since the server might carry out two in either order. What happens while a
command is under way (a send, a message) is kept and processed when the answer has come. Each answer
puts the seat in one of three states:

- ours: the queue has the lease. At half of its life the seat asks for it again, so that a slow
  connect does not lose it. A queue that has sent twice within a lease's life, and no other replica
  between, keeps the lease although no request waits: its next send needs no round trip before it.
  A kept lease is given up when another replica wants it, or at half of its life.
- queued: other replicas go first. The seat waits for a message, and asks if none came in time.
- left: the queue wants no lease. The seat is closed.

Invariants: the lease of a queue never lasts longer here than in the store (it counts from before
the command was sent). A send is reported exactly once, after its lease was taken from the queue.
A closed seat does nothing more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock, Timer
from proxy.pacing.leases import HoldLeft, Lease, SharedQueue
from proxy.store.script import LEASE, Again, LeaseStatus, Name, Op, Script, Stamp
from proxy.store.wire import StoreDown

_RENEW_AT: Final = 0.5  # of the lease
_ASK_AGAIN: Final = 0.05  # seconds; the shortest pause before asking about a lease


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatContext:
    """What a seat needs.

    `found_new_state` gets an account whose state the store did not have, or had lost, and when its
    state began. `closed` removes the seat from the list. `sends_often` says whether a queue's last
    two sends are close enough to keep the lease.
    """

    clock: Clock
    script: Script
    found_new_state: Callable[[SharedQueue, int], None]
    closed: Callable[["Seat"], object]
    sends_often: Callable[[SharedQueue], bool]


@dataclass(frozen=True, slots=True)
class _Granted:
    """A lease announced by a message: when it opens, and a moment before it was given."""

    stamp: Stamp
    at: float
    since: float


class Seat:
    """Asks for leases of one queue, reports its sends, and gives up what it does not need."""

    def __init__(self, queue: SharedQueue, context: SeatContext) -> None:
        self.queue = queue
        self.name = name_of(queue)
        self.is_busy = False  # a command is under way
        self.is_ours = False
        self.stamp: Stamp | None = None  # of the last answer
        self._context = context
        self._clock = context.clock
        self._is_open = True
        self._is_kept = False  # ours, although no request waits
        self._wanted: Stamp | None = None  # the last time that another replica wanted our lease
        self._has_sent = False  # while a command was under way: yet to be reported
        self._granted: _Granted | None = None  # while a command was under way
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        state = "busy" if self.is_busy else "ours" if self.is_ours else "queued"
        return f"<Seat {self.queue.route}: {state}>"

    def ask(self) -> None:
        """Ask for the lease, or for more time."""
        self._start(Op.ASK)

    def unused(self) -> None:
        """Give up the lease, unless it is kept, or the place among the replicas that want it."""
        if not self._is_kept:
            self.leave()

    def leave(self) -> None:
        """Give up the lease, or the place among the replicas that want it."""
        if not self.is_busy:
            self._start(Op.LEAVE)

    def wanted(self, stamp: Stamp) -> None:
        """Give up a kept lease, because another replica wants it."""
        if self.is_busy:
            self._wanted = stamp
        elif self._is_kept and stamp.is_after(self.stamp):
            self._keep_no_longer()

    def report(self) -> None:
        """Report for how long the last send from here delays the next one."""
        self._has_sent = self.is_busy
        if not self.is_busy:
            self._start(Op.SENT)

    def report_again(self) -> None:
        """Report it again, to a store that has lost its state."""
        self.is_ours = False
        self.queue.lease_lost()
        self.report()

    def granted(self, stamp: Stamp, at: float, since: float) -> bool:
        """Take a lease that a message announced; True if the queue has it now."""
        if self.is_busy:
            self._granted = _Granted(stamp, at, since)
            return False
        if not stamp.is_after(self.stamp):
            return False
        self._take(at, since)
        return True

    def lost(self, stamp: Stamp) -> bool:
        """Obey a message that the lease ran out; True if by our clock it had not."""
        if self.is_busy or not self.is_ours or not stamp.is_after(self.stamp):
            return False
        is_early = self._clock.monotonic() < self.queue.lease.until
        self.is_ours = False
        self.ask()
        return is_early

    def close(self) -> None:
        """Close the seat; ignore an answer that is still to come."""
        self._is_open = False
        self._cancel_timer()

    def _start(self, op: Op) -> None:
        self.is_busy = True
        self._is_kept = False
        self._cancel_timer()
        if op is not Op.ASK or not self.is_ours:
            self.is_ours = False
            self.queue.lease_lost()
        if op is Op.SENT:  # first let the queue decide whether it wants the next lease
            self._clock.call_at(self._clock.monotonic(), lambda: self._run(op, self._next()))
        else:
            self._run(op)

    def _next(self) -> Again:
        """What the queue wants after its send."""
        if self.queue.wants_lease():
            return Again.WAIT
        return Again.KEEP if self._context.sends_often(self.queue) else Again.NOTHING

    def _run(self, op: Op, again: Again = Again.NOTHING) -> None:
        if not self._is_open:
            return
        queue = self.queue
        begun = self._clock.monotonic()

        def answered(status: LeaseStatus | StoreDown) -> None:
            self.is_busy = False
            if self._is_open and not isinstance(status, StoreDown):
                self._answered(status, op, begun, again)

        self._context.script.run(
            op,
            *self.name,
            span=queue.pace_left() if op is Op.SENT else 0.0,
            interval=queue.interval,
            again=again,
            answered=answered,
        )

    def _answered(self, status: LeaseStatus, op: Op, begun: float, again: Again) -> None:
        queue = self.queue
        self.stamp = status.stamp
        if status.stamp.is_first:
            self._has_sent |= op is not Op.SENT and queue.pace_left() > 0
            self._context.found_new_state(queue, status.stamp.born)
        self._settle(status, begun, is_in=op is Op.ASK or again is Again.WAIT)
        if again is Again.KEEP and self.is_ours and not self.is_busy:
            self._is_kept = self._wanted is None or not self._wanted.is_after(status.stamp)
        self._wanted = None
        obey(queue, status)
        queue.reevaluate()

    def _settle(self, status: LeaseStatus, begun: float, *, is_in: bool) -> None:
        """Process an answer; `is_in` says whether the command asked for a lease."""
        queue, now = self.queue, self._clock.monotonic()
        granted, self._granted = self._granted, None
        expected = now + status.wait + status.ahead * queue.interval
        queue.lease_expected(expected, max(1, status.wanting + (0 if is_in else 1)))
        if self._has_sent:
            self.report()
        elif status.is_ours:
            self._take(now + status.wait, begun)
        elif is_in and granted is not None and granted.stamp.is_after(status.stamp):
            self._take(granted.at, granted.since)
        elif is_in:
            self.is_ours = False
            queue.lease_lost()
            self._ask_at(max(expected, now + _ASK_AGAIN))
        else:
            self.close()
            self._context.closed(self)

    def _take(self, at: float, since: float) -> None:
        """Hand the queue a lease that opens at that moment and was given after `since`."""
        now = self._clock.monotonic()
        lease = Lease(at, since + max(0.0, at - now) + LEASE)
        if lease.until <= now:  # the process was stopped, so the lease may be over
            self.ask()
            return
        self.is_ours = True
        self.queue.lease_granted(lease)
        self._ask_at(lease.at + LEASE * _RENEW_AT)

    def _ask_at(self, at: float) -> None:
        """Set a timer: then extend a lease that is not used yet, or ask about an overdue one."""
        self._cancel_timer()
        self._timer = self._clock.call_at(at, self._ask_again)

    def _ask_again(self) -> None:
        self._timer = None
        if self._is_kept:
            self._keep_no_longer()
        if self._is_open and not self.is_busy:
            self.ask()  # a request waits, or is about to leave

    def _keep_no_longer(self) -> None:
        """Let the queue give up the lease, unless it is in use."""
        self._is_kept = False
        self.queue.reevaluate()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def name_of(queue: SharedQueue) -> Name:
    """Return the queue's name in the store."""
    return queue.key, queue.lease_name


def obey(queue: SharedQueue, status: LeaseStatus) -> None:
    """Obey the holds of the store, of all routes and of this one, where they are longer."""
    obey_hold(queue, status.hold, of_route=False)
    obey_hold(queue, status.route_hold, of_route=True)


def obey_hold(queue: SharedQueue, left: HoldLeft, *, of_route: bool) -> None:
    """Put the queue, or its account, on hold for that long, unless it already is for longer."""
    if left.outlasts(queue.hold_left(of_route=of_route)):
        queue.obey_hold(left, of_route=of_route)
