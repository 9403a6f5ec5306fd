"""The arithmetic of pace and prediction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.pace import Pace, in_words, interval_of, predicted_wait, return_after

JITTER = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("pace", "interval", "due"),
    [
        (Pace(sent_at=10.0), 0.5, 10.5),
        (Pace(sent_at=10.0), 2.0, 12.0),
        (Pace(sent_at=10.0, cost=3.0), 0.5, 11.5),
        (Pace(sent_at=10.0, cost=1.5), 0.5, 10.75),
        (Pace(sent_at=10.0), 0.0, 10.0),
    ],
)
def test_next_send_is_due_cost_times_interval_after_the_last(
    pace: Pace, interval: float, due: float
) -> None:
    """The interval is the one in force when it is asked for, not when the last one left."""
    assert pace.due(interval) == due


@pytest.mark.parametrize(
    ("account", "route", "interval"),
    [(None, None, 0.5), (0.2, None, 0.2), (None, 0.1, 0.1), (2.0, 0.1, 2.0), (0.2, 1.0, 1.0)],
)
def test_longer_of_an_account_s_and_a_route_s_interval_counts(
    account: float | None, route: float | None, interval: float
) -> None:
    assert interval_of(0.5, account=account, route=route) == interval


@pytest.mark.parametrize(
    ("due", "cost_ahead", "interval", "wait"),
    [
        (10.0, 0.0, 0.5, 0.0),
        (7.0, 0.0, 0.5, 0.0),
        (10.25, 0.0, 0.5, 0.25),
        (10.0, 4.0, 0.5, 2.0),
        (10.25, 4.0, 0.5, 2.25),
        (7.0, 1.5, 2.0, 3.0),
        (40.0, 7.0, 0.0, 30.0),
    ],
)
def test_predicted_wait_is_what_is_left_plus_all_ahead(
    due: float, cost_ahead: float, interval: float, wait: float
) -> None:
    assert predicted_wait(now=10.0, due=due, cost_ahead=cost_ahead, interval=interval) == wait


@pytest.mark.parametrize(
    ("excess", "earliest", "latest"),
    [
        (-3.0, 1, 2),
        (0.0, 1, 2),
        (0.001, 1, 2),
        (1.0, 1, 2),
        (1.001, 2, 3),
        (4.0, 4, 5),
        (7.5, 8, 10),
        (100.0, 100, 125),
    ],
)
def test_refused_callers_return_spread_over_a_quarter_more(
    excess: float, earliest: int, latest: int
) -> None:
    """Whole seconds, never before the place is there, both ends of the spread in use."""
    drawn = {return_after(excess, jitter=step / 1000) for step in range(1000)}
    assert drawn == set(range(earliest, latest + 1))


@given(excess=st.floats(-1e6, 1e6), jitter=JITTER)
def test_any_return_is_whole_seconds_and_not_too_early(excess: float, jitter: float) -> None:
    seconds = return_after(excess, jitter=jitter)
    assert isinstance(seconds, int)
    assert max(1, excess) <= seconds <= max(2, excess + 2, 1.25 * (excess + 1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (119.94, "119.9 s"),
        (120, "2 min"),
        (5000, "83 min"),
        (7140, "119 min"),
        (3_600_000, "1000.0 h"),
        (7200, "2.0 h"),
        (86400, "24.0 h"),
    ],
)
def test_a_wait_is_said_in_the_unit_people_use(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
