"""Which names come most often, in bounded memory."""

import pytest

from proxy.rules.tally import CallerCount, RecentTally, Tally, top


def test_the_largest_counts_come_first_and_equal_ones_by_name() -> None:
    counts = {"b": 2, "a": 2, "c": 5, "d": 1}
    assert top(counts, 3) == (CallerCount("c", 5), CallerCount("a", 2), CallerCount("b", 2))
    assert top(counts, 9)[-1] == CallerCount("d", 1)
    assert top({}, 3) == ()


def test_a_full_tally_gives_up_the_smallest_count() -> None:
    tally = Tally(2)
    for name in "aaab":
        tally.add(name)
    tally.add("c")
    assert tally.counts() == {"a": 3, "c": 2}


def test_a_frequent_caller_stays_in_a_flood_of_others() -> None:
    tally = Tally(10)
    for number in range(5000):
        tally.add(f"other-{number}")
        if number % 5 == 0:
            tally.add("often")
    counts = tally.counts()
    assert len(counts) == 10
    assert counts["often"] >= 1000


@pytest.mark.parametrize(
    ("now", "count"), [(0.0, 1), (99.9, 1), (100.0, 1), (199.9, 1), (200.0, 0)], ids=str
)
def test_what_is_old_is_forgotten_after_one_to_two_spans(now: float, count: int) -> None:
    tally = RecentTally(5, 100.0)
    tally.add("a", 0.0)
    assert tally.top(5, now) == ((CallerCount("a", 1),) if count else ())


def test_both_spans_count() -> None:
    tally = RecentTally(5, 100.0)
    for at in (0.0, 99.0, 101.0):
        tally.add("a", at)
    tally.add("b", 150.0)
    assert tally.top(5, 199.0) == (CallerCount("a", 3), CallerCount("b", 1))
    assert tally.top(5, 250.0) == (CallerCount("a", 1), CallerCount("b", 1))
    assert tally.top(1, 250.0) == (CallerCount("a", 1),)


def test_spans_follow_each_other_without_a_gap() -> None:
    tally = RecentTally(5, 100.0)
    tally.add("a", 0.0)
    tally.add("b", 100.0)
    assert tally.top(5, 299.9) == (CallerCount("b", 1),)
    tally = RecentTally(5, 100.0)
    tally.add("a", 0.0)
    tally.add("b", 150.0)
    assert tally.top(5, 299.9) == (CallerCount("b", 1),)
    assert tally.top(5, 300.0) == ()
