"""While replicas cannot agree, each has its moments of the wall clock."""

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.phase import SLACK, WINDOW, next_in_phase

INTERVAL = 0.5
LAP = 2 * INTERVAL + SLACK


def moment(at: float, *, now: float = 0.0, number: int = 0, replicas: int = 2) -> float:
    return next_in_phase(
        at, now=now, wall_offset=0.0, interval=INTERVAL, replicas=replicas, number=number
    )


@pytest.mark.parametrize(
    ("at", "now", "number", "expected"),
    [
        (0.0, 0.0, 0, 0.0),
        (0.0, 0.0, 1, LAP / 2),
        (-5.0, 0.0, 0, 0.0),
        (0.001, 0.0, 0, 0.001),  # late in its window, and in time
        (WINDOW, 0.0, 0, WINDOW),
        (0.1, 0.0, 0, LAP),
        (-5.0, 0.1, 0, LAP),  # the window has closed
        (-5.0, WINDOW / 2, 0, 0.0),  # it is open: at once
        (0.0, 0.0, 2, 0.0),  # more replicas than are configured share
    ],
)
def test_next_moment_is_in_the_replicas_own_window(
    at: float, now: float, number: int, expected: float
) -> None:
    assert moment(at, now=now, number=number) == pytest.approx(expected)


@given(
    wall=st.floats(0, 2e9),
    replicas=st.integers(2, 8),
    interval=st.floats(0.05, 10),
    latenesses=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_sends_of_all_replicas_keep_the_interval_but_for_a_window(
    wall: float, replicas: int, interval: float, latenesses: list[float]
) -> None:
    """Each sends as soon as it may, however late in its window; none loses a round by that."""
    window = min(WINDOW, interval / 4)
    sends: list[float] = []
    for number in range(replicas):
        due, last = 0.0, -inf
        for lateness in latenesses:
            at = next_in_phase(
                due,
                now=due,
                wall_offset=wall,
                interval=interval,
                replicas=replicas,
                number=number,
            )
            sent = at + lateness * min(SLACK, window)
            assert sent - last >= replicas * interval - 1e-5
            assert last == -inf or sent - last <= replicas * interval + SLACK + window + 1e-5
            sends.append(sent)
            due, last = sent + replicas * interval, sent
    sends.sort()
    gaps = [later - earlier for earlier, later in pairwise(sends)]
    assert min(gaps) >= interval - window - 1e-5


@pytest.mark.parametrize(("now", "expected"), [(0.009, 0.009), (0.011, 0.09)])
def test_the_window_is_a_quarter_of_a_very_short_interval(now: float, expected: float) -> None:
    at = next_in_phase(now, now=now, wall_offset=0.0, interval=0.04, replicas=2, number=0)
    assert at == pytest.approx(expected)
