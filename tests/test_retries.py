"""How often and how soon a request is sent again stays within the configured bounds."""

from collections.abc import Callable

import pytest

from proxy.retries import RetryRules
from proxy.settings import Retry

DEFAULT = RetryRules(Retry())
DRAWS = 300


def drawn(draw: Callable[[], float]) -> tuple[float, float]:
    """Return the least and the largest of many draws."""
    draws = [draw() for _ in range(DRAWS)]
    return min(draws), max(draws)


@pytest.mark.parametrize(
    ("attempts", "elapsed", "may"),
    [
        (0, 0.0, True),
        (1, 0.0, True),
        (3, 0.0, True),
        (4, 0.0, False),
        (5, 0.0, False),
        (1, 59.9, True),
        (1, 60.0, False),
        (3, 61.0, False),
        (4, 59.9, False),
    ],
)
def test_another_send_fits_the_attempts_and_the_time(
    attempts: int, elapsed: float, *, may: bool
) -> None:
    """Four sends at most, the last of them before a minute has passed."""
    assert DEFAULT.may_send_again(attempts=attempts, elapsed=elapsed) is may


def test_one_attempt_is_never_repeated() -> None:
    assert not RetryRules(Retry(max_attempts=1)).may_send_again(attempts=1, elapsed=0.0)


@pytest.mark.parametrize(
    ("refusals", "least", "most"),
    [(1, 0.5, 1.0), (2, 1.0, 1.5), (3, 2.0, 2.5), (6, 16.0, 16.5), (7, 30.0, 30.0), (9999, 30, 30)],
)
def test_hold_doubles_with_each_refusal_that_names_no_time(
    refusals: int, least: float, most: float
) -> None:
    """The jitter is added after, never before; `max_backoff` ends the growth."""
    shortest, longest = drawn(lambda: DEFAULT.after_refusals(refusals))
    assert least <= shortest <= longest <= most
    assert longest - shortest >= 0.5 * (most - least)


@pytest.mark.parametrize(
    ("attempts", "least", "most"),
    [(1, 0.25, 0.5), (2, 0.5, 1.0), (3, 1.0, 2.0), (6, 8.0, 16.0), (7, 15.0, 30.0), (9999, 15, 30)],
)
def test_half_of_a_pause_between_tries_is_fixed_and_half_random(
    attempts: int, least: float, most: float
) -> None:
    shortest, longest = drawn(lambda: DEFAULT.after_unsent(attempts))
    assert least <= shortest <= longest <= most
    assert longest - shortest >= 0.5 * (most - least)


def test_four_tries_span_at_least_one_and_three_quarter_seconds() -> None:
    """An API that restarts within a second is met again."""
    shortest, longest = drawn(lambda: sum(DEFAULT.after_unsent(tries) for tries in (1, 2, 3)))
    assert 1.75 <= shortest <= longest <= 3.5


def test_the_settings_scale_and_bound_every_wait() -> None:
    rules = RetryRules(Retry(initial_backoff=2, max_backoff=3))
    assert 2.0 <= rules.after_refusals(1) <= 3.0
    assert rules.after_refusals(2) == 3.0
    assert 1.0 <= rules.after_unsent(1) <= 2.0
    assert 1.5 <= rules.after_unsent(2) <= 3.0
