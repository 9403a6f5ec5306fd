"""One queue: the waiters of one route of one account, their pace, and their lease.

It knows no account and no clock: moments and the interval are arguments, in monotonic seconds. It
never stores the interval, so a changed setting applies to the very next send. `interval` is that of
the account, 0 on a route that is not paced; `spread` is the factor by which it grows while replicas
cannot take turns.

Invariants: while a slot of a paced queue is out, no other is due. The pace counts from the send, or
from an attempt that failed, never from the grant: a slot that is given back unused costs nothing.
"""

from math import inf
from typing import Final

from proxy.pacing.leases import QueueLease
from proxy.pacing.slot import Slot
from proxy.pacing.waiters import Waiters
from proxy.rules.pace import Pace
from proxy.rules.state import QueueState

_SMOOTHING: Final = 0.25  # how much of the average answer time the last answer is


class Queue:
    """Waiters of one route, and when the next of them is due."""

    __slots__ = (
        "_answer_seconds",
        "_closed_until",
        "_has_sent",
        "_last_gap",
        "_last_sent_at",
        "_pace",
        "_sent_count",
        "_unanswered",
        "lease",
        "paced",
        "route",
        "sending",
        "waiters",
    )

    def __init__(self, route: str, *, paced: bool, started_at: float) -> None:
        self.route = route
        self.paced = paced
        self.waiters = Waiters()
        self.sending: Slot | None = None  # the slot that is out, on a paced route
        self.lease = QueueLease()
        self._pace = Pace(sent_at=started_at)
        self._has_sent = False  # the first pace is that of the start
        self._closed_until = -inf
        self._sent_count = 0
        self._last_sent_at = -inf
        self._last_gap: float | None = None
        self._answer_seconds = 0.0  # a moving average
        self._unanswered: dict[Slot, None] = {}  # in the order in which they were granted

    def __repr__(self) -> str:
        return f"<Queue {self.route}: {self.waiters.depth} waiting>"

    # When it is due

    def pace_due(self, interval: float) -> float:
        """Return when the pace allows the next send; `interval` is the spread one."""
        return max(self._pace.due(interval), self._closed_until) if self.paced else 0.0

    def opens_at(self, now: float, interval: float) -> float:
        """Return when pace and lease allow the holder of a slot to send."""
        return max(self.pace_due(interval), self.lease.present.opens(now))

    def pace_left(self, now: float, interval: float) -> float:
        """Return the seconds for which the last send from here keeps the next one back."""
        return max(0.0, self._pace.due(interval) - now) if self._has_sent else 0.0

    def predicted_due(self, now: float, interval: float, spread: int) -> float:
        """Return when a new request is due if no ticket waits, as far as can be predicted."""
        due = max(self.pace_due(interval * spread), self.lease.predicted(now))
        return due if self.sending is None else max(due, now) + self.sending.cost * interval

    def predicted_interval(self, interval: float, spread: int) -> float:
        """Return the predicted seconds between two sends from here, given replicas and leases."""
        return interval * max(self.lease.contenders, spread)

    @property
    def average_answer_seconds(self) -> float:
        """Return the recent average time of an answer, in seconds."""
        return self._answer_seconds

    def answer_seconds(self, now: float) -> float:
        """Return how long answers take: the average, or the age of the oldest open slot."""
        oldest = next(iter(self._unanswered), None)
        return max(self._answer_seconds, 0.0 if oldest is None else now - oldest.granted_at)

    # What happens to its slot

    def granted(self, slot: Slot) -> None:
        """Note a slot that is out."""
        self._unanswered[slot] = None
        if self.paced:
            self.sending = slot

    def ended(self, slot: Slot, now: float, *, accepted: bool) -> None:
        """Note that a slot is over; remember how long its answer took, unless it is a refusal."""
        self._unanswered.pop(slot, None)
        if accepted and slot.sent_at > -inf:
            seconds = now - slot.sent_at
            part = _SMOOTHING if self._answer_seconds else 1.0
            self._answer_seconds += part * (seconds - self._answer_seconds)

    def given_back(self, slot: Slot) -> bool:
        """Note that a slot is no longer out; True if it was."""
        if self.sending is not slot:
            return False
        self.sending = None
        return True

    def inherit(self, other: "Queue", interval: float) -> None:
        """Keep the distance from the last send of another queue, too."""
        if other._pace.due(interval) > self._pace.due(interval):  # noqa: SLF001 -- of the same class
            self._pace, self._has_sent = other._pace, other._has_sent  # noqa: SLF001 -- likewise
        self._closed_until = max(self._closed_until, other._closed_until)  # noqa: SLF001

    def close_until(self, at: float) -> None:
        """Send nothing until then."""
        self._closed_until = max(self._closed_until, at)

    def note_sent(self, at: float) -> float | None:
        """Note when a request left; return the seconds since the send before it."""
        self._last_gap = at - self._last_sent_at if self._sent_count else None
        self._sent_count, self._last_sent_at = self._sent_count + 1, at
        return self._last_gap

    def spend(self, slot: Slot, at: float) -> None:
        """Keep the distance from a send, or from an attempt that failed."""
        self._pace, self._has_sent = Pace(sent_at=at, cost=slot.cost), True

    def keep_distance(self, now: float, interval: float, replicas: int) -> None:
        """Send nothing for an interval, or for `replicas` of them after a send from here."""
        self._closed_until = max(now + interval, self._pace.due(interval * replicas))

    # State

    def oldest_seconds(self, now: float) -> float:
        """Return how long the oldest waiter has waited."""
        oldest = self.waiters.oldest
        return 0.0 if oldest is None else now - oldest.joined_at

    def state(self, now: float, interval: float) -> QueueState:
        """Return what is known of the queue."""
        return QueueState(
            name=self.route,
            queue_depth=self.waiters.depth,
            oldest_seconds=self.oldest_seconds(now),
            interval=interval,
            sent=self._sent_count,
            last_gap_seconds=self._last_gap,
        )
