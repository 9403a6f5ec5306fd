"""The bounds of the histograms' buckets, in seconds."""

from typing import Final

_WAITS: Final = (
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    12.0,
    15.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    900.0,
    3600.0,
)
DURATIONS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, *_WAITS)
LATENESS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


def wait_bounds(interval: float, longest_wait: float) -> tuple[float, ...]:
    """Return bounds for times in a queue: none, around one interval, then on to the longest wait.

    Between five and fifteen seconds they are close: clients give up after such times.
    """
    longest = max(interval, longest_wait)
    bounds = {0.005, interval / 2, interval, 2 * interval}
    bounds |= {bound for bound in _WAITS if bound > 2 * interval}
    return (*sorted({float(f"{bound:.2g}") for bound in bounds if bound < longest}), longest)
