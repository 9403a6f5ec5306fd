"""The answers the proxy makes itself: the table as callers know it."""

import pytest

from proxy.problems import KINDS, Name, Problem

# name: status, and whether it has Retry-After (None: it depends)
TABLE: dict[Name, tuple[int, bool | None]] = {
    "bad-request": (400, False),
    "unauthenticated": (401, False),
    "missing-scope": (403, None),
    "route-denied": (403, False),
    "not-found": (404, False),
    "method-not-allowed": (405, False),
    "timeout": (408, False),
    "in-doubt": (409, False),
    "too-large": (413, False),
    "nested-field": (422, False),
    "key-reused": (422, False),
    "queue-full": (429, True),
    "wait-expired": (429, True),
    "internal": (500, False),
    "outcome-unknown": (502, False),
    "bad-upstream": (502, False),
    "token-rejected": (502, False),
    "upstream-unreachable": (503, True),
    "token-unavailable": (503, True),
    "keys-unavailable": (503, True),
    "store-unavailable": (503, True),
    "overloaded": (503, True),
    "draining": (503, True),
    "loop": (508, False),
}


def test_a_problem_has_the_status_that_callers_rely_on() -> None:
    assert {name: kind.status for name, kind in KINDS.items()} == {
        name: status for name, (status, _) in TABLE.items()
    }


def test_titles_are_not_shared() -> None:
    """RFC 9457 section 3.1.3: a title is of the type, the same each time."""
    assert len({kind.title for kind in KINDS.values()}) == len(TABLE)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[1] is False])
def test_what_may_have_been_done_never_asks_to_be_sent_again(name: Name) -> None:
    with pytest.raises(ValueError, match=name):
        Problem(name, "A sentence.", retry_after=1)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[1] is True])
def test_what_is_safe_to_send_again_says_when(name: Name) -> None:
    with pytest.raises(ValueError, match=name):
        Problem(name, "A sentence.")


def test_a_problem_anew_says_all_that_the_first_one_does() -> None:
    first = Problem(
        "outcome-unknown", "A.", status=504, headers={"A": "b"}, close=True, fields={"c": 1}
    )
    again = first.anew()
    assert again is not first
    assert vars(again) == vars(first)
    assert str(again) == "A."
    assert Problem("queue-full", "A.", retry_after=2.5).anew().retry_after == 3
