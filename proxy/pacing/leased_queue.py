"""One queue of an account, as a store sees it: its leases, and the holds that replicas share.

A `Queue` knows no account and no clock; this class adds both. It is what pacing gives a store
(`SharedQueue` in leases.py). A message of the store may let a request leave, so the queue passes it
to its account through `HoldKeeper`.
"""

from math import inf
from typing import Protocol

from proxy.pacing.allowance import Allowance
from proxy.pacing.holding import Holding
from proxy.pacing.leases import HoldLeft, Lease
from proxy.pacing.queue import Queue
from proxy.pacing.slot import Ending


class HoldKeeper(Protocol):
    """What a queue tells its account about the other replicas."""

    def pump(self) -> None:
        """Offer every slot that is due."""
        ...

    def obey_hold(self, left: HoldLeft, queue: "LeasedQueue | None") -> None:
        """Hold one queue or the whole account (None), as another replica was told to."""
        ...

    def obey_end_of_hold(self, queue: "LeasedQueue | None") -> None:
        """End a hold that is over, as another replica has seen."""
        ...


class LeasedQueue:
    """A queue in its account, as a store sees it."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_keeper",
        "_leases",
        "allowance",
        "holding",
        "lease_name",
        "queue",
    )

    def __init__(self, keeper: HoldKeeper, allowance: Allowance, queue: Queue) -> None:
        self._keeper = keeper
        self._clock = allowance.context.clock
        self._leases = allowance.context.leases
        self.allowance = allowance
        self.holding = Holding()  # of this route alone
        self.queue = queue
        self.lease_name = allowance.context.lease_name(queue.route)
        self._leases.opened(self)

    def __repr__(self) -> str:
        return f"<LeasedQueue {self.allowance.label}/{self.route}: {self.queue.lease}>"

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
        """True if a send needs a lease; a queue that needs none still obeys holds."""
        return self.queue.paced

    @property
    def interval(self) -> float:
        """Seconds between two sends on this queue; 0 where the route is not paced."""
        return self.allowance.interval_on(self.route) if self.queue.paced else 0.0

    @property
    def lease(self) -> Lease:
        """The lease as it was last granted or lost."""
        return self.queue.lease.present

    # What the queue tells the store

    def apply(self, *, paced: bool) -> None:
        """Note whether the route is paced from now on."""
        old, self.lease_name = self.lease_name, self.allowance.context.lease_name(self.route)
        if self.lease_name != old:
            if self.paced and paced:
                self.keep_distance(1)  # another replica may have sent for these paths just now
            self._leases.moved(self, old)
        if paced is not self.paced:
            self.queue.paced = paced
            self._leases.opened(self)

    def order_lease(self) -> None:
        """Ask for a lease if a waiter could use it, else give it up."""
        if self.queue.sending is not None and self.paced:
            return  # it is being used
        if self.wants_lease():
            self._leases.wanted(self)
        else:
            self._leases.unused(self)

    def own_moment(self, at: float, interval: float) -> float:
        """Return this replica's first own moment from `at` on, at that interval."""
        if not self.queue.paced or at == inf:
            return at
        return self._leases.next_moment(at, interval)

    # What the store asks

    def wants_lease(self) -> bool:
        """True if a waiter could be sent with a lease."""
        if not self.queue.waiters.depth:
            return False
        now = self._clock.monotonic()
        if self.allowance.control.is_paused(now):
            return False
        return max(self.allowance.opens_at(now), self.holding.state.opens_at(now)) < inf

    def pace_left(self) -> float:
        """Seconds for which the last send of this replica keeps the next one back."""
        now, allowance = self._clock.monotonic(), self.allowance
        left = self.queue.pace_left(now, self.interval)
        configured = allowance.configured_interval_on(self.route)
        return allowance.control.pace_left(now, left, self.queue.pace_left(now, configured))

    def hold_left(self, *, of_route: bool) -> HoldLeft:
        """The hold of this queue's route alone, or of all routes of its account."""
        now = self._clock.monotonic()
        state = (self.holding if of_route else self.allowance.holding).state
        return HoldLeft(state.remaining(now), state.named_remaining(now))

    # What the store tells

    def lease_granted(self, lease: Lease) -> None:
        """Send with this lease from now on."""
        self.queue.lease.granted(lease)

    def lease_lost(self) -> None:
        """Send nothing until a lease is granted."""
        self.queue.lease.lost()

    def lease_expected(self, at: float, contenders: int) -> None:
        """Predict waits from this moment, while that many replicas have waiters on the queue."""
        self.queue.lease.expected(at, contenders)

    def store_lost(self) -> None:
        """Send without leases, from the moment at which the next one was expected."""
        self.queue.lease.store_lost(paced=self.paced)

    def keep_distance(self, replicas: int) -> None:
        """Send nothing for an interval, or for `replicas` of them after a send of this replica."""
        self.queue.keep_distance(self._clock.monotonic(), self.interval, replicas)

    def obey_hold(self, left: HoldLeft, *, of_route: bool) -> None:
        """Obey a hold of which another replica was told."""
        self._keeper.obey_hold(left, self if of_route else None)

    def obey_end_of_hold(self, *, of_route: bool) -> None:
        """Send again: an answer to another replica has shown that the hold is over."""
        self._keeper.obey_end_of_hold(self if of_route else None)

    def refuse_waiters(self) -> None:
        """Refuse all waiters: there is no store to keep the pace."""
        self.queue.waiters.end(Ending.NO_STORE)

    def reevaluate(self) -> None:
        """Offer the slots that are due; expire a first waiter that only waited to learn of one."""
        self._keeper.pump()
        first = self.queue.waiters.first
        if first is not None and first.undecided_from <= self._clock.monotonic():
            first.end(Ending.EXPIRED)
