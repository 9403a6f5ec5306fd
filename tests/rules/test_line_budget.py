"""The lines of a second: an owner that floods the log costs no other owner a line."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.line_budget import PROXY, LineBudget, Owner

LOUD, QUIET = Owner("loud", is_configured=False), Owner("quiet", is_configured=False)
OWNERS = [LOUD, QUIET, PROXY, *(Owner(f"o{n}", is_configured=bool(n % 2)) for n in range(9))]


def taken(budget: LineBudget, owner: Owner, lines: int, most: int = 10) -> int:
    return sum(budget.take(owner, most) for _ in range(lines))


def test_one_alone_has_all_lines_of_a_second_and_all_again_in_the_next() -> None:
    budget = LineBudget()
    assert budget.begin(1)
    assert taken(budget, LOUD, 50) == 10
    assert not budget.begin(1)
    assert taken(budget, LOUD, 50) == 0
    assert budget.begin(2)
    assert taken(budget, LOUD, 50) == 10


def test_behind_a_flood_each_other_has_half_as_many() -> None:
    budget = LineBudget()
    assert taken(budget, LOUD, 50) == 10
    assert [taken(budget, owner, 50) for owner in (QUIET, PROXY, LOUD)] == [5, 5, 0]


def test_a_flood_behind_others_has_half_at_most() -> None:
    budget = LineBudget()
    assert taken(budget, QUIET, 8) == 8
    assert taken(budget, LOUD, 50) == 5
    assert taken(budget, QUIET, 50) == 0


def test_with_one_line_a_second_each_has_one() -> None:
    budget = LineBudget()
    assert [taken(budget, owner, 3, most=1) for owner in (LOUD, QUIET)] == [1, 1]


def test_many_strangers_have_four_times_as_many_beyond_and_configured_accounts_still_theirs() -> (
    None
):
    budget = LineBudget()
    strangers = [Owner(f"{number}", is_configured=False) for number in range(100)]
    assert sum(taken(budget, one, 50) for one in strangers) == 10 + 40
    assert taken(budget, QUIET, 1) == 0
    assert taken(budget, Owner("london", is_configured=True), 50) == 5


@given(st.lists(st.sampled_from(OWNERS), max_size=300), st.integers(1, 20))
def test_nobody_has_less_than_half_of_the_lines_while_strangers_are_few(
    owners: list[Owner], most: int
) -> None:
    budget = LineBudget()
    had = dict.fromkeys(OWNERS, 0)
    for owner in owners:
        is_taken = budget.take(owner, most)
        if sum(had.values()) < most or had[owner] < max(1, most // 2):
            strangers = sum(had[one] for one in OWNERS if not one.is_configured)
            assert is_taken or strangers >= 4 * most
        had[owner] += is_taken
    assert all(lines <= most for lines in had.values())


def test_strangers_have_as_many_beyond_in_each_second() -> None:
    budget = LineBudget()
    strangers = [Owner(f"{number}", is_configured=False) for number in range(100)]
    for second in (1, 2, 3):
        assert budget.begin(second)
        assert sum(taken(budget, one, 50) for one in strangers) == 10 + 40


def test_of_three_lines_a_second_each_has_one_behind_a_flood() -> None:
    budget = LineBudget()
    assert [taken(budget, owner, 9, most=3) for owner in (LOUD, QUIET)] == [3, 1]
