"""One queue of an account, as callers wait in it.

When its next slot is due is in due_times.py, its dealings with a store are in leased_queue.py, how
long a new request would wait in prediction.py. The account decides who is sent next; `Scheduler` is
what the queue sees of it.
"""

from dataclasses import replace
from typing import Protocol

from proxy.pacing.allowance import Allowance
from proxy.pacing.due_times import DueTimes
from proxy.pacing.holding import QueueHolds
from proxy.pacing.leased_queue import HoldKeeper, LeasedQueue
from proxy.pacing.queue import Queue
from proxy.pacing.slot import Report, Slot, Ticket
from proxy.rules.observing import PaperQueue
from proxy.rules.returns import Returns
from proxy.rules.state import QueueState


class Scheduler(HoldKeeper, Protocol):
    """What a queue asks of its account."""

    def grant(self, queue: "AccountQueue", ticket: Ticket, now: float) -> Slot:
        """Give the slot that is due to that ticket."""
        ...

    def may_send(self, queue: "AccountQueue", slot: Slot, now: float) -> bool:
        """True if hold, pace and lease still let the slot's request leave."""
        ...

    def settle(self, queue: "AccountQueue", slot: Slot, report: Report) -> None:
        """Process a slot's report."""
        ...


class AccountQueue:
    """A queue in its account, as callers wait in it."""

    __slots__ = (
        "_clock",
        "allowance",
        "holding",
        "holds",
        "joined",
        "leased",
        "on_paper",
        "queue",
        "returns",
        "scheduler",
        "times",
        "waiters",
    )

    def __init__(
        self, scheduler: Scheduler, allowance: Allowance, route: str, *, paced: bool
    ) -> None:
        context = allowance.context
        self.scheduler = scheduler
        self.allowance = allowance
        self.queue = Queue(route, paced=paced, started_at=context.started_at)
        self.waiters = self.queue.waiters
        self.leased = LeasedQueue(scheduler, allowance, self.queue)
        self.holding = self.leased.holding
        self.holds = QueueHolds(allowance.holding, self.holding, context.clock)
        self.returns = Returns()
        self.on_paper = PaperQueue()  # the queue that would be, where it is only observed
        self.times = DueTimes(allowance, self.leased)
        self.joined: tuple[AccountQueue, ...] = ()  # they keep one pace with this queue
        self._clock = context.clock

    def __repr__(self) -> str:
        return f"<AccountQueue {self.allowance.label}/{self.route}: {self.depth} waiting>"

    @property
    def route(self) -> str:
        """The route's name."""
        return self.queue.route

    @property
    def paced(self) -> bool:
        """True if the route is paced; an unpaced queue still obeys holds."""
        return self.queue.paced

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return self.waiters.depth

    @property
    def interval(self) -> float:
        """Seconds between two sends on this queue; 0 where the route is not paced."""
        return self.leased.interval

    @property
    def is_in_use(self) -> bool:
        """True if a request waits, or has a slot that it has not used yet."""
        return self.depth > 0 or self.queue.sending is not None

    def held_seconds(self) -> float:
        """Return the seconds spent on hold or paused so far, the present hold or pause included."""
        paused = self.allowance.control.held_seconds(self._clock.monotonic())
        return self.holds.seconds() + paused

    def rename(self, route: str) -> None:
        """Become the queue of another route, which takes what this one took."""
        self.queue.route = route

    def inherit(self, other: "AccountQueue") -> None:
        """Take over the pace and the hold of a queue that took the same paths."""
        self.keep_pace_of(other)
        self.holding.inherit(other.holding)

    def keep_pace_of(self, other: "AccountQueue") -> None:
        """Keep the interval from the last send of another queue, too."""
        self.queue.inherit(other.queue, self.allowance.interval_on(self.route))

    def join(self, other: "AccountQueue") -> None:
        """Keep one pace with another queue from now on."""
        self._set_joined((*self.joined, other))

    def part(self, other: "AccountQueue") -> None:
        """Keep one pace with another queue no longer."""
        self._set_joined(tuple(one for one in self.joined if one is not other))

    def _set_joined(self, queues: "tuple[AccountQueue, ...]") -> None:
        self.joined = queues
        self.times.joined = tuple(one.queue for one in queues)

    # What becomes of its slots, which belong to the queue whatever its route is called by then

    def may_send(self, slot: Slot, now: float) -> bool:
        """True if hold, pace and lease still let the slot's request leave."""
        return self.scheduler.may_send(self, slot, now)

    def settle(self, slot: Slot, report: Report) -> None:
        """Process the slot's report."""
        self.scheduler.settle(self, slot, report)

    # State

    def state(self, now: float, *, predicted: float) -> QueueState:
        """Return what is known of the queue; `predicted` is the wait of a newcomer, in seconds."""
        return replace(
            self.queue.state(now, self.interval),
            predicted_seconds=predicted,
            hold_remaining_seconds=self.holding.state.remaining(now),
            hold_named_seconds=self.holding.state.named_remaining(now),
            hold_limit=self.holding.limit,
        )
