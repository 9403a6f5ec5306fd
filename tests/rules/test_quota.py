"""The quota that the API announces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.quota import Quota, QuotaLeft


@pytest.mark.parametrize(
    ("count", "allowed", "reset", "quota"),
    [
        ("3", "5", "4", Quota(2, 4.0)),
        ("5", "5", "61", Quota(0, 61.0)),
        ("7", "5", "4", Quota(0, 4.0)),
        (" 0\t", "300", "1", Quota(300, 1.0)),
    ],
)
def test_quota_is_what_is_left_of_the_window(
    count: str, allowed: str, reset: str, quota: Quota
) -> None:
    assert Quota.parse([count], [allowed], [reset]) == quota


ODD = [
    "",
    "-1",
    "+5",
    "1.5",
    "1e3",
    "many",
    "5 5",
    "5, 5",
    "\u0665",
    "9999999999",
    "0x5",
    "\xa05",
    "X5",
]


@pytest.mark.parametrize("odd", [[], ["5", "5"], *([text] for text in ODD)])
def test_odd_value_in_any_place_is_no_quota(odd: list[str]) -> None:
    assert Quota.parse(odd, ["5"], ["4"]) is None
    assert Quota.parse(["5"], odd, ["4"]) is None
    assert Quota.parse(["5"], ["5"], odd) is None


def test_window_without_requests_or_seconds_is_no_quota() -> None:
    assert Quota.parse(["0"], ["0"], ["4"]) is None
    assert Quota.parse(["5"], ["5"], ["0"]) is None


@given(st.lists(st.text(), max_size=2), st.lists(st.text(), max_size=2))
def test_any_text_is_a_quota_or_none(count: list[str], reset: list[str]) -> None:
    quota = Quota.parse(count, ["300"], reset)
    assert quota is None or (0 <= quota.remaining <= 300 and quota.reset > 0)


@pytest.mark.parametrize(
    ("now", "in_flight", "opens"), [(10.0, 1, 10.0), (10.0, 2, 14.0), (14.0, 9, 14.0)]
)
def test_no_more_are_under_way_than_are_left(now: float, in_flight: int, opens: float) -> None:
    """Until the window ends."""
    assert QuotaLeft(room=2, until=14.0).opens_at(now, in_flight) == opens
