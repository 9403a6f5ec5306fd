"""The arithmetic of pace, hold, prediction and retry budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.pace import (
    Hold,
    Pace,
    RetryBudget,
    hold_after,
    predicted_wait,
    return_after,
)

MOMENTS = st.floats(0, 1e6)
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


@pytest.mark.parametrize(("now", "left"), [(9.0, 6.0), (14.5, 0.5), (15.0, 0.0), (99.0, 0.0)])
def test_what_remains_of_a_hold_is_never_negative(now: float, left: float) -> None:
    assert Hold(since=5.0, until=15.0).remaining(now) == left


@pytest.mark.parametrize(("now", "kept"), [(5.0, 0.0), (9.0, 4.0), (15.0, 10.0), (9999.0, 10.0)])
def test_silence_kept_ends_with_the_hold(now: float, kept: float) -> None:
    """However late the probe comes: an account nobody uses is not on hold all night."""
    assert Hold(since=5.0, until=15.0).kept(now) == kept


def test_first_refusal_begins_a_hold() -> None:
    assert hold_after(None, now=5.0, until=15.0, refusals=1) == Hold(5.0, 15.0, 1)


def test_hold_that_would_end_before_it_begins_is_over_at_once() -> None:
    """Retry-After 0 asks for the normal pace, which may already be past."""
    assert hold_after(None, now=5.0, until=4.0, refusals=0) == Hold(5.0, 5.0, 0)


@pytest.mark.parametrize(
    ("until", "refusals", "held"),
    [
        (12.0, 0, Hold(5.0, 15.0, 2)),
        (15.0, 2, Hold(5.0, 15.0, 2)),
        (20.0, 0, Hold(5.0, 20.0, 2)),
        (12.0, 3, Hold(5.0, 15.0, 3)),
    ],
)
def test_longer_hold_is_never_shortened(until: float, refusals: int, held: Hold) -> None:
    assert hold_after(Hold(5.0, 15.0, 2), now=6.0, until=until, refusals=refusals) == held


def test_silence_between_two_holds_counts_for_neither() -> None:
    """Ten seconds of silence, an hour without any traffic, ten seconds more: twenty."""
    renewed = hold_after(Hold(0.0, 10.0), now=3610.0, until=3620.0, refusals=0)
    assert renewed.kept(3620.0) == 20.0
    assert renewed.remaining(3610.0) == 10.0


@given(st.lists(st.tuples(MOMENTS, MOMENTS, st.integers(0, 9)), min_size=1, max_size=20))
def test_any_refusals_only_ever_prolong_a_hold(refusals: list[tuple[float, float, int]]) -> None:
    hold: Hold | None = None
    for now, until, count in sorted(refusals):
        before = hold
        hold = hold_after(before, now=now, until=until, refusals=count)
        assert hold.until >= max(now, until)
        assert 0.0 <= hold.kept(now) <= now
        if before is not None:
            assert hold.until >= before.until
            assert hold.refusals >= before.refusals


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
def test_predicted_wait_is_what_is_left_plus_everybody_ahead(
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


def test_budget_never_falls_below_three() -> None:
    """An account that sends nothing else may still repeat three requests a minute."""
    budget = RetryBudget()
    assert [budget.take(100.0, 0.1) for _ in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize(("sends", "share", "granted"), [(50, 0.1, 5), (59, 0.1, 5), (10, 1.0, 10)])
def test_budget_is_a_share_of_the_sends(sends: int, share: float, granted: int) -> None:
    budget = RetryBudget()
    for _ in range(sends):
        budget.count_send(100.0)
    assert sum(budget.take(100.0, share) for _ in range(100)) == granted


def test_budget_of_nothing_is_the_floor() -> None:
    """A share of 0 does not forbid the three."""
    budget = RetryBudget()
    budget.count_send(0.0)
    assert sum(budget.take(0.0, 0.0) for _ in range(10)) == 3


def test_spent_budget_comes_back_after_a_minute() -> None:
    budget = RetryBudget()
    assert all(budget.take(100.0, 0.1) for _ in range(3))
    assert not budget.take(159.9, 0.1)
    assert budget.take(162.0, 0.1)


def test_sends_older_than_a_minute_earn_no_retries() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.count_send(100.0)
    assert sum(budget.take(162.0, 0.1) for _ in range(100)) == 3


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=200),
    st.floats(0, 1),
)
def test_retries_of_a_minute_never_exceed_share_and_floor(
    steps: list[tuple[float, bool]], share: float
) -> None:
    """Counted by hand over every window that ends with a retry; a step of slack at its old end."""
    budget = RetryBudget()
    now = 0.0
    sends: list[float] = []
    retries: list[float] = []
    for pause, is_retry in steps:
        now += pause
        if not is_retry:
            budget.count_send(now)
            sends.append(now)
        elif budget.take(now, share):
            retries.append(now)
            recent = sum(at > now - 60 for at in retries)
            assert recent <= max(3, share * sum(at >= now - 62 for at in sends))
        else:
            assert sum(at >= now - 62 for at in retries) >= 3
