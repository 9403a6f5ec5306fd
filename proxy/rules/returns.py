"""When refused callers should come back, so that they do not all come back at one moment.

Theory of operation. A refused caller gets the next free moment after those given before, one
interval apart, as if refused callers had a queue of their own. So callers that obey return at the
pace at which the real queue empties, and find a place. A moment that has passed is free again, so
callers need not say that they returned or gave up.

Invariant: no moment given is earlier than the caller's own wait requires, nor more than
`LONGEST_AHEAD` later. This bounds how far a caller that asks again and again, without waiting,
delays the moments of others.
"""

from dataclasses import dataclass
from math import ceil, inf
from typing import ClassVar


@dataclass(slots=True)
class Returns:
    """The moments given to refused callers of one queue; monotonic seconds."""

    LONGEST_AHEAD: ClassVar = 600.0  # seconds

    _last: float = -inf

    def retry_after(self, *, now: float, excess: float, interval: float, jitter: float) -> int:
        """Give a refused caller a moment, and return the whole seconds until then, at least 1.

        `excess` is by how many seconds its wait would be too long; `jitter` in [0, 1) spreads those
        who meet the longest time ahead.
        """
        earliest = now + max(0.0, excess)
        latest = earliest + self.LONGEST_AHEAD * (1 - jitter / 4)
        at = min(latest, max(earliest, self._last + interval))
        self._last = max(self._last, at)
        return max(1, ceil(at - now))
