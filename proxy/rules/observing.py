"""What would happen to a request if the pace were enforced, where it is only observed.

Theory of operation. An observed account sends everything at once. Each of its queues has a
simulated queue: for each request that arrives, it computes the moment at which the request would
have left, behind all that would still be waiting. If that is too late for the caller, the request
would have been refused, and delays no other. Room in flight does not count, since the simulation
cannot know when answers would come.

Invariants: nothing here delays a request. `now` is an argument, in monotonic seconds.
"""

from dataclasses import dataclass, field
from math import inf

from proxy.rules.pace import Pace, fits


@dataclass(frozen=True, slots=True)
class Would:
    """How many seconds a request would have waited, and whether it would have been refused."""

    seconds: float
    is_refused: bool


@dataclass(frozen=True, slots=True)
class PaperQueue:
    """The simulated queue: its last send, if there was one."""

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
        """Return the queue after one more arrival, and what would have happened to the request.

        `held` is how many seconds of a hold are left, `limit` for how many the caller waits.
        """
        at = max(now + held, self.last.due(interval))
        seconds = at - now
        is_full = interval > 0 and seconds >= interval * max_queue
        if is_full or not fits(seconds, limit):
            return self, Would(seconds, is_refused=True)
        return PaperQueue(Pace(at, cost)), Would(seconds, is_refused=False)
