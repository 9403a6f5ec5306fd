"""Failed log-ins are counted for a minute, in a table that does not grow."""

import pytest

from proxy.identity.failed_logins import FailedLogins
from proxy.problems import Problem
from tests.kit.clock import FakeClock


def test_tenth_failure_in_a_minute_shuts_the_address_out_until_the_first_is_a_minute_old() -> None:
    clock = FakeClock()
    failed = FailedLogins(clock=clock)
    for _ in range(9):
        failed.note("a", "c")
    failed.check("a", "c")
    failed.note("a", "c")
    with pytest.raises(Problem) as refused:
        failed.check("a", "c")
    assert (refused.value.status, refused.value.retry_after) == (429, 60)


async def test_failure_counts_for_a_minute() -> None:
    clock = FakeClock()
    failed = FailedLogins(clock=clock)
    for _ in range(10):
        failed.note("a", "c")
    await clock.advance(60)
    failed.check("a", "c")


def test_table_is_bounded_and_forgets_the_address_that_failed_longest_ago() -> None:
    failed = FailedLogins(clock=FakeClock(), max_entries=2)
    for address in ("a", "b", "a"):
        failed.note(address, "c")
    for _ in range(8):
        failed.note("a", "c")
    failed.note("c", "c")
    assert len(failed) == 2
    with pytest.raises(Problem):
        failed.check("a", "c")


def test_entries_have_a_bound() -> None:
    failed = FailedLogins(clock=FakeClock())
    for number in range(10_100):
        failed.note(str(number), "c")
    assert len(failed) == 10_000


def test_address_that_failed_as_one_client_may_try_as_another() -> None:
    failed = FailedLogins(clock=FakeClock())
    for _ in range(10):
        failed.note("a", "c")
    failed.check("a", "d")
