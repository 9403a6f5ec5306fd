"""The budget of re-sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.retry_budget import RetryBudget


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
