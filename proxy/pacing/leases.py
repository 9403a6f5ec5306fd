"""Leases of a queue that several replicas share: what pacing needs of a store.

Each replica keeps its own queues of waiters. Replicas take turns to send: the store gives the lease
of a queue to one replica at a time, and only that replica may send. `Leases` is what pacing calls,
`SharedQueue` what a store calls. `Alone` here serves a single process; store/leases.py serves many
replicas on one Redis.

Invariants: a queue changes its own state only, in the methods below; a store reads it and calls
them. No method waits or raises. `reevaluate` may send, so a store calls it last.
"""

from dataclasses import dataclass
from math import inf
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Lease:
    """From when and until when a queue may send; monotonic seconds."""

    at: float
    until: float

    def opens(self, now: float) -> float:
        """When the lease may be used; `inf` once it has run out."""
        return self.at if now <= self.until else inf


FREE: Final = Lease(-inf, inf)  # no other replica is to be asked
NOT_OURS: Final = Lease(inf, -inf)


class QueueLease:
    """The lease of one queue: the present one, and when the next one is expected."""

    __slots__ = ("_expected_at", "contenders", "present")

    def __init__(self) -> None:
        self.present = FREE
        self.contenders = 1  # replicas with waiters on the queue
        self._expected_at = -inf

    def __repr__(self) -> str:
        return f"<QueueLease {self.present}>"

    def granted(self, lease: Lease) -> None:
        """Send with this lease from now on."""
        self.present = lease
        self._expected_at = lease.at

    def lost(self) -> None:
        """Send nothing until a lease is granted."""
        self.present = NOT_OURS

    def expected(self, at: float, contenders: int) -> None:
        """Predict waits from this moment, while that many replicas have waiters on the queue."""
        self._expected_at = at
        self.contenders = contenders

    def store_lost(self, *, paced: bool) -> None:
        """Send without leases, from the moment at which the next one was expected."""
        self.present = Lease(self._expected_at, inf) if paced else FREE
        self.contenders = 1

    def predicted(self, now: float) -> float:
        """When a lease may be used, as far as can be predicted."""
        opens = self.present.opens(now)
        return self._expected_at if opens == inf else opens


@dataclass(frozen=True, slots=True)
class HoldLeft:
    """A hold, as replicas tell each other of it: seconds left of it and of what the API named."""

    seconds: float = 0.0
    named: float = 0.0

    def outlasts(self, other: "HoldLeft") -> bool:
        """True if this would prolong the other one."""
        return self.seconds > other.seconds or self.named > other.named

    def __bool__(self) -> bool:
        return self.seconds > 0 or self.named > 0


class SharedQueue(Protocol):
    """A replica's queue, as a store knows it; times are monotonic seconds."""

    @property
    def key(self) -> str:
        """Name of the account's state in the store; holds no client id and no token."""
        ...

    @property
    def route(self) -> str:
        """The route's name."""
        ...

    @property
    def lease_name(self) -> str:
        """Name of the queue's leases in the account's state; a route's new name leaves it."""
        ...

    @property
    def paced(self) -> bool:
        """True if a send needs a lease; a queue that needs none still obeys holds."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between two sends."""
        ...

    @property
    def lease(self) -> Lease:
        """The lease as it was last granted or lost."""
        ...

    def wants_lease(self) -> bool:
        """True if a waiter could be sent with a lease."""
        ...

    def pace_left(self) -> float:
        """Seconds for which the last send of this replica keeps the next one back."""
        ...

    def hold_left(self, *, of_route: bool) -> HoldLeft:
        """The hold of this queue's route alone, or of all routes of its account."""
        ...

    def lease_granted(self, lease: Lease) -> None:
        """Send with this lease from now on."""
        ...

    def lease_lost(self) -> None:
        """Send nothing until a lease is granted."""
        ...

    def lease_expected(self, at: float, contenders: int) -> None:
        """Predict waits from this moment, while that many replicas have waiters on the queue."""
        ...

    def store_lost(self) -> None:
        """Send without leases, from the moment at which the next one was expected."""
        ...

    def keep_distance(self, replicas: int) -> None:
        """Send nothing for an interval, or for `replicas` of them after a send of this replica."""
        ...

    def obey_hold(self, left: HoldLeft, *, of_route: bool) -> None:
        """Obey a hold of which another replica was told."""
        ...

    def obey_end_of_hold(self, *, of_route: bool) -> None:
        """Send again: an answer to another replica has shown that the hold is over."""
        ...

    def refuse_waiters(self) -> None:
        """Refuse all waiters: there is no store to keep the pace."""
        ...

    def reevaluate(self) -> None:
        """Offer the slots that are due; expire a first waiter that only waited to learn of one."""
        ...


class Leases(Protocol):
    """Which replica may send on a queue that several share. No method waits or raises."""

    @property
    def replicas(self) -> int:
        """How many replicas there are, as configured."""
        ...

    @property
    def spread(self) -> int:
        """The factor by which intervals grow: the number of replicas while the store is down."""
        ...

    def next_moment(self, at: float, interval: float) -> float:
        """The first moment from then on at which this replica may send, if it has the lease."""
        ...

    @property
    def answer_timeout(self) -> float:
        """How many seconds the store may take to say whether a queue has the lease."""
        ...

    @property
    def is_refusing(self) -> bool:
        """True if paced requests are refused, because the store is down."""
        ...

    def opened(self, queue: SharedQueue) -> None:
        """There is a new queue, or one that was not paced is now, or the reverse."""
        ...

    def moved(self, queue: SharedQueue, old: str) -> None:
        """The queue's leases have a new name; until now it was `old`."""
        ...

    def wanted(self, queue: SharedQueue) -> None:
        """A waiter could be sent: get a lease for the queue. A repeated call changes nothing."""
        ...

    def unused(self, queue: SharedQueue) -> None:
        """No waiter could be sent: give up the lease. A repeated call changes nothing."""
        ...

    def used(self, queue: SharedQueue) -> None:
        """The lease was used for a send: `pace_left` says how long other replicas must wait."""
        ...

    def held(self, key: str, route: str, left: HoldLeft) -> None:
        """The API put this account on hold, on one route or on all ("")."""
        ...

    def hold_over(self, key: str, route: str) -> None:
        """An answer has shown that a hold is over before the API's named wait was."""
        ...


class Alone:
    """Leases for one replica."""

    replicas = 1
    spread = 1
    answer_timeout = 0.0
    is_refusing = False

    def next_moment(self, at: float, interval: float) -> float:  # noqa: ARG002 -- the protocol
        """Any moment will do."""
        return at

    def opened(self, queue: SharedQueue) -> None:
        """The queue's own pace is all there is."""
        queue.lease_granted(FREE)

    def moved(self, queue: SharedQueue, old: str) -> None:
        """No other replica knows the name."""

    def wanted(self, queue: SharedQueue) -> None:
        """The lease is always ours."""

    def unused(self, queue: SharedQueue) -> None:
        """No other replica wants it."""

    def used(self, queue: SharedQueue) -> None:
        """There is no other replica to tell."""

    def held(self, key: str, route: str, left: HoldLeft) -> None:
        """There is no other replica to tell."""

    def hold_over(self, key: str, route: str) -> None:
        """There is no other replica to tell."""
