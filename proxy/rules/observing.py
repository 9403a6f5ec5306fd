"""What would become of a request if the pace were enforced, where it is only observed.

Theory of operation. An observed account sends everything at once. Beside each of its queues runs a
queue on paper: a request that arrives is given the moment at which it would have left, behind all
that would still be waiting. If that is too late for the caller, it would have been refused, and
then it delays nobody. Room in flight is not part of it, since answers come when they come.

Invariants: nothing here delays a request. `now` is an argument, in monotonic seconds.
"""

from dataclasses import dataclass, field
from math import inf

from proxy.rules.pace import Pace, fits


@dataclass(frozen=True, slots=True)
class Would:
    """What would have been: how many seconds it would wait, and if it would be refused for that."""

    seconds: float
    is_refused: bool


@dataclass(frozen=True, slots=True)
class PaperQueue:
    """The queue that would be: its last send, if there was one."""

    last: Pace = field(default_factory=lambda: Pace(-inf))

    def arrive(  # noqa: PLR0913 -- what an admission knows, by name
        self,
        now: float,
        *,
        cost: float,
        interval: float,
        limit: float,
        held: float,
        max_queue: int,
    ) -> tuple["PaperQueue", Would]:
        """Return the queue after one more arrival, and what would become of it.

        `held` is how many seconds of a hold are left, `limit` for how many the caller waits.
        """
        at = max(now + held, self.last.due(interval))
        seconds = at - now
        is_full = interval > 0 and seconds >= interval * max_queue
        if is_full or not fits(seconds, limit):
            return self, Would(seconds, is_refused=True)
        return PaperQueue(Pace(at, cost)), Would(seconds, is_refused=False)
