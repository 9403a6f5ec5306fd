"""When the next slot of a queue is due, as pace, lease, holds and operators allow it.

Times are monotonic seconds; `-inf` means at once, `inf` that something else must come first. Where
the pace is only observed, slots are due at once.
"""

from math import inf

from proxy.pacing.allowance import Allowance
from proxy.pacing.leased_queue import LeasedQueue
from proxy.pacing.queue import Queue


class DueTimes:
    """When one queue may send; `joined` are the queues that keep one pace with it."""

    __slots__ = ("_allowance", "_leased", "_queue", "joined")

    def __init__(self, allowance: Allowance, leased: LeasedQueue) -> None:
        self._allowance = allowance
        self._leased = leased
        self._queue = leased.queue
        self.joined: tuple[Queue, ...] = ()

    def __repr__(self) -> str:
        now = self._allowance.context.clock.monotonic()
        return f"<DueTimes of {self._leased.route}: in {self.due(now) - now} s>"

    def pace_due(self) -> float:
        """Return when the pace allows the next send."""
        return self._queue.pace_due(self._leased.interval * self._allowance.spread)

    def opens_at(self, now: float) -> float:
        """Return when pace and lease allow the holder of a slot to send."""
        if not self._queue.paced:
            # It waits for the lease until a shared hold is known.
            return self._queue.lease.present.opens(now)
        interval = self._allowance.interval_on(self._queue.route)
        opens = self._queue.opens_at(now, interval * self._allowance.spread)
        return self._leased.own_moment(opens, interval)

    def paced_due(self, now: float) -> float:
        """Return when pace and lease allow the next slot: `inf` while one is out and unused."""
        return -inf if self._allowance.is_observed else self._paced_due(now)

    def _paced_due(self, now: float) -> float:
        if self.joined and any(other.sending is not None for other in self.joined):
            return inf
        if self._queue.paced and self._queue.sending is not None:
            return inf
        return self.opens_at(now)

    def due(self, now: float) -> float:
        """Return when the next slot of this route is due; the account may have to wait longer."""
        if self._allowance.is_observed:
            return -inf
        return max(self._paced_due(now), self._leased.holding.state.opens_at(now))

    def due_since(self, now: float) -> float:
        """Return the moment at which the next slot of this route became due, or will be."""
        return max(self.paced_due(now), self._leased.holding.state.opens_at(-inf))

    def is_free(self, now: float) -> bool:
        """True if a newcomer could be sent at once."""
        return (
            not self._queue.waiters.depth
            and self._allowance.opens_at(now) <= now
            and self.due(now) <= now
        )

    def may_be_free(self) -> bool:
        """True if a newcomer could be sent at once, as far as is known without the store."""
        if self._queue.waiters.depth or self._queue.sending is not None:
            return False
        now = self._allowance.context.clock.monotonic()
        due = self._leased.own_moment(self.pace_due(), self._leased.interval)
        opens = max(self._allowance.opens_at(now), self._leased.holding.state.opens_at(now))
        return max(opens, due) <= now
