"""Refused callers are told to come back one after the other, each late enough."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.returns import Returns


def test_moments_are_one_interval_apart() -> None:
    returns = Returns()
    told = [returns.retry_after(now=0.0, excess=0.5, interval=0.5, jitter=0.0) for _ in range(6)]
    assert told == [1, 1, 2, 2, 3, 3]


def test_a_moment_that_has_passed_is_free_again() -> None:
    returns = Returns()
    for _ in range(100):
        returns.retry_after(now=0.0, excess=0.0, interval=0.5, jitter=0.0)
    assert returns.retry_after(now=60.0, excess=2.0, interval=0.5, jitter=0.0) == 2


def test_a_caller_that_does_not_wait_cannot_send_the_others_away_for_long() -> None:
    returns = Returns()
    for _ in range(2000):
        returns.retry_after(now=0.0, excess=1.0, interval=0.5, jitter=0.0)
    assert returns.retry_after(now=0.0, excess=1.0, interval=0.5, jitter=0.0) == 601
    assert returns.retry_after(now=0.0, excess=1.0, interval=0.5, jitter=0.999) == 452


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(-10, 1000), st.floats(0, 10), st.floats(0, 0.999)),
        max_size=30,
    )
)
def test_no_caller_is_told_to_come_too_early(
    refused: list[tuple[float, float, float, float]],
) -> None:
    returns, now = Returns(), 0.0
    for pause, excess, interval, jitter in refused:
        now += pause
        told = returns.retry_after(now=now, excess=excess, interval=interval, jitter=jitter)
        assert told >= max(1.0, excess)
        assert told <= max(0.0, excess) + Returns.LONGEST_AHEAD + 1
