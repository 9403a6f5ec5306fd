"""What the API's word on a token means, and when it may be asked for."""

from typing import Any

import pytest

from proxy.rules.whoami import Finding, Named, Pace, Places, Rejected, Switch, Unclear, read_answer

FIELD = "OAuthClient.id"
SERVICE: dict[str, Any] = {
    "organization": {"id": "org", "name": "Org"},
    "homeOrganization": {"id": "org"},
    "authorizedScope": ["a"],
    "OAuthClient": {"id": "c", "name": "Client", "organization": {"id": "org"}},
}


def test_answer_of_the_vendor_names_the_client_and_its_organization() -> None:
    assert read_answer(200, SERVICE, FIELD) == Named("c", "org")


@pytest.mark.parametrize(
    "person",
    [
        {"user": {"id": "u"}},
        {"clonedUser": {"id": "u"}},
        {"userId": "u"},
        {"OAuthClient": {"id": "c", "createdByUser": "u"}},
        {"tokens": [{"user": "u"}]},
        {"person": "p"},
        {"OAuthClient": {"id": "c", "authorizedGrantType": "CODE"}},
        {"grant_type": "password", "grantType": "password"},
        {"a": {"b": {"c": {"d": {"e": {}}}}}},
        {"a": [[[[[]]]]]},
    ],
    ids=range(10),
)
def test_answer_that_speaks_of_a_person_proves_no_service(person: dict[str, Any]) -> None:
    assert read_answer(200, {**SERVICE, **person}, FIELD) == Named("c", None)


@pytest.mark.parametrize(
    "nobody",
    [
        {"user": None},
        {"clonedUser": {}},
        {"userId": ""},
        {"OAuthClient": {"id": "c", "authorizedGrantType": "CLIENT-CREDENTIALS"}},
        {"a": {"b": {"c": {"d": {}}}}},
        {"a": [[[[]]]]},
    ],
    ids=range(6),
)
def test_empty_fields_name_nobody(nobody: dict[str, Any]) -> None:
    assert read_answer(200, {**SERVICE, **nobody}, FIELD) == Named("c", "org")


def test_token_at_home_elsewhere_proves_no_service() -> None:
    assert read_answer(200, {**SERVICE, "homeOrganization": {"id": "x"}}, FIELD) == Named("c", None)


@pytest.mark.parametrize(
    ("status", "document", "expected"),
    [
        (401, SERVICE, Rejected()),
        (404, SERVICE, Unclear(is_missing=True)),
        (403, SERVICE, Unclear()),
        (201, SERVICE, Unclear()),
        (500, {}, Unclear()),
        (200, {}, Unclear()),
        (200, {"OAuthClient": "c"}, Unclear()),
        (200, {"OAuthClient": {"id": ""}}, Unclear()),
        (200, {"OAuthClient": {"id": ["c"]}}, Unclear()),
        (200, {"OAuthClient": {"id": " c "}}, Named("c", None)),
    ],
)
def test_everything_else(status: int, document: dict[str, Any], expected: object) -> None:
    assert read_answer(status, document, FIELD) == expected


def test_field_may_stand_anywhere() -> None:
    assert read_answer(200, {"azp": "c"}, "azp") == Named("c", None)


def test_ten_questions_a_second_and_the_eleventh_later() -> None:
    pace = Pace()
    for number in range(10):
        assert pace.next_at() <= 5.0 + number / 100
        pace.note(5.0 + number / 100)
    assert 6.0 < pace.next_at() < 6.2
    pace.take_back()
    assert pace.next_at() <= 5.1


def waiting(*items: tuple[str, str], limit: int = 64) -> Places[str]:
    places: Places[str] = Places(limit)
    for peer, item in items:
        assert places.add(peer, item) is None
    return places


def test_addresses_take_turns_and_each_is_served_in_order() -> None:
    places = waiting(("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"))
    assert [places.pop() for _ in range(5)] == ["a1", "b1", "c1", "a2", "a3"]
    assert len(places) == 0


def test_newcomer_displaces_the_last_of_the_address_with_the_most() -> None:
    places = waiting(("a", "a1"), ("a", "a2"), ("a", "a3"), limit=3)
    assert places.add("b", "b1") == "a3"
    assert places.add("b", "b2") == "b2"
    assert places.add("a", "a4") == "a4"
    assert [*places] == ["a1", "a2", "b1"]


def test_newcomer_displaces_one_of_two_of_another_address() -> None:
    places = waiting(("a", "a1"), ("a", "a2"), limit=2)
    assert places.add("b", "b1") == "a2"


def test_a_question_that_leaves_is_not_served() -> None:
    places = waiting(("a", "a1"), ("b", "b1"))
    assert places.discard("a1")
    assert not places.discard("a1")
    assert places.pop() == "b1"


def test_five_404_in_a_row_switch_asking_off_for_ten_minutes() -> None:
    switch = Switch()
    missing = Unclear(is_missing=True)
    findings: list[Finding] = [missing, missing, missing, missing, Named("c", None), *[missing] * 4]
    for finding in findings:
        assert not switch.note(finding, 100.0)
    assert switch.is_on(100.0)
    assert switch.note(missing, 100.0)
    assert not switch.is_on(699.9)
    assert switch.is_on(700.0)
    assert not switch.note(missing, 700.0), "it counts from the start again"


def test_the_address_with_the_most_is_displaced_wherever_it_stands() -> None:
    places = waiting(("z", "z1"), ("z", "z2"), ("z", "z3"), ("z", "z4"), ("a", "a1"), limit=5)
    assert places.add("a", "a2") == "z4"
    assert places.add("a", "a3") == "a3", "each would have three: nobody is displaced for one more"
    places = waiting(("a", "a1"), ("b", "b1"), ("b", "b2"), ("b", "b3"), ("c", "c1"), limit=5)
    assert places.add("d", "d1") == "b3"
    places = waiting(("a", "a1"), ("b", "b1"), ("b", "b2"), ("b", "b3"), limit=4)
    assert places.add("c", "c1") == "b3"


def test_after_ten_minutes_it_takes_five_404_again() -> None:
    switch, missing = Switch(), Unclear(is_missing=True)
    for start in (0.0, 600.0, 1200.0):
        assert [switch.note(missing, start) for _ in range(5)] == [False] * 4 + [True]
