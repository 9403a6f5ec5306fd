"""The pace of a queue, and what it predicts.

After a send of cost c, the next send of the same queue is due c x interval later. The interval is
not stored, so a changed setting governs the very next send. Arithmetic on monotonic seconds only:
`now` is an argument, nothing here waits.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

_DRIFT: Final = 0.03  # share of a wait by which a pace may be slower than its interval
_MANY_SECONDS: Final = 120
_MANY_MINUTES: Final = 7200  # in seconds
_LATENESS: Final = 0.05  # seconds by which one send may be late


@dataclass(frozen=True, slots=True)
class Pace:
    """The last send of a queue: when it left (monotonic seconds) and what it cost (intervals)."""

    sent_at: float
    cost: float = 1.0

    def due(self, interval: float) -> float:
        """Return the monotonic time from which the next send is allowed."""
        return self.sent_at + self.cost * interval


def interval_of(general: float, *, account: float | None, route: float | None) -> float:
    """Return the interval of an account on a route: its own, the route's, or the longer of both."""
    if account is None or route is None:
        own = route if account is None else account
        return general if own is None else own
    return max(account, route)


def predicted_wait(*, now: float, due: float, cost_ahead: float, interval: float) -> float:
    """Return the seconds until a new request would be sent.

    `due` is when the queue may send next (its pace, or a hold if that is longer), `cost_ahead` the
    summed cost, in intervals, of all requests that go before the newcomer.
    """
    return max(0.0, due - now) + cost_ahead * interval


def in_words(seconds: float) -> str:
    """Return a wait as text: in seconds, minutes or hours."""
    if seconds < _MANY_SECONDS:
        return f"{seconds:.1f} s"
    if seconds < _MANY_MINUTES:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def longest_prediction(limit: float) -> float:
    """Return the longest predicted wait with which a request is sent within the limit.

    Each send is a little late, and the next interval counts from it. So a real wait may be longer
    than predicted by a share of the wait, and by the lateness of the send itself.
    """
    return max(0.0, (limit - _LATENESS) / (1 + _DRIFT))


def fits(predicted: float, limit: float) -> bool:
    """True if a request with this predicted wait will be sent within the limit."""
    return predicted <= longest_prediction(limit)


def return_after(excess: float, *, jitter: float) -> int:
    """Return the whole seconds after which a refused caller should come back.

    `excess` is by how many seconds the predicted wait is too long; `jitter` in [0, 1) spreads the
    returns over up to a quarter more, or one second where that is longer.
    """
    seconds = max(1, ceil(excess))
    spread = max(1, seconds // 4)
    return seconds + int(jitter * (spread + 1))
