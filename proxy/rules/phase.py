"""When a replica may send while replicas cannot agree: its phase of the wall clock.

Without a store each of N replicas sends once in N intervals, so together they keep the pace. But if
two replicas send at the same moment the API refuses one of them, however seldom each sends. So
replica number k sends only in a short window that opens k intervals after the start of each round
of N intervals, by the wall clock, which all replicas share.

Invariants: two sends of different numbers are `interval - WINDOW` apart or more. A round lasts
`SLACK` longer than N intervals, so that a replica that sends a little late in its window is in time
for its next one, and keeps N intervals between its own sends.
"""

from math import floor
from typing import Final

WINDOW: Final = 0.015  # seconds; an API that allows 20 ms leaves 5 for the way to it
SLACK: Final = 0.01  # seconds a round


def next_in_phase(  # noqa: PLR0913 -- moments and their clocks
    at: float, *, now: float, wall_offset: float, interval: float, replicas: int, number: int
) -> float:
    """Return the first moment from `at` on at which that replica may send.

    `at` and `now` are monotonic seconds, `wall_offset` is how far the wall clock is ahead of them.
    The result is `now` or earlier only while a window is open.
    """
    lap = replicas * interval + SLACK
    window = min(WINDOW, interval / 4)
    phase = number % replicas * lap / replicas
    reference = max(at, now)
    opened = floor((reference + wall_offset - phase) / lap) * lap + phase - wall_offset
    return max(at, opened) if reference <= opened + window else opened + lap
