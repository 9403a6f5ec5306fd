"""What a token answer grants, as servers really write it."""

import pytest

from proxy.rules.token_answers import Grant, life_of, read_document, read_grant, remaining_life
from tests.kit.tokens import unsigned


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3599, 3599.0),
        ("3599", 3599.0),
        (" 3599 ", 3599.0),
        ("3599.5", 3599.5),
        (600.5, 600.5),
        (10**400, 172_800.0),
        ("9" * 5000, 172_800.0),
        (float("inf"), 172_800.0),
        (0, None),
        ("0", None),
        (-1, None),
        ("-1", None),
        (True, None),
        (None, None),
        (float("nan"), None),
        ("soon", None),
        ("٣", None),
        ([600], None),
    ],
    ids=range(18),
)
def test_lifetime_in_any_spelling(value: object, seconds: float | None) -> None:
    assert read_grant({"access_token": "t", "expires_in": value}) == Grant(
        token="t", lifetime=seconds, scope=None
    )


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("a b", {"a", "b"}),
        ("a,b", {"a", "b"}),
        ("a, b,", {"a", "b"}),
        (["a b", "c"], None),
        ("", None),
        (" , ", None),
        (None, None),
        (7, None),
    ],
)
def test_scope_in_any_spelling(value: object, scopes: set[str] | None) -> None:
    grant = read_grant({"access_token": "t", "scope": value})
    assert grant is not None
    assert grant.scope == scopes


@pytest.mark.parametrize("token", [None, "", 7, ["t"], "a b", "\ud800", "é", "a\n"])
def test_what_cannot_be_a_bearer_token_is_no_grant(token: object) -> None:
    assert read_grant({"access_token": token, "expires_in": 600}) is None


def test_any_visible_ascii_may_be_a_bearer_token() -> None:
    token = "".join(map(chr, range(0x21, 0x7F)))
    grant = read_grant({"access_token": token})
    assert grant is not None
    assert grant.token == token


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'"a"', b"\xff\xfe", b"[" * 60_000])
def test_what_is_no_object_is_an_empty_one(body: bytes) -> None:
    assert read_document(body) == {}


def test_life_without_expires_in_is_to_the_tokens_own_end_or_an_hour() -> None:
    def life(token: str) -> float:
        return life_of(Grant(token=token, lifetime=None, scope=None), 1000.0)

    assert life("opaque") == 3600
    assert life(unsigned({"exp": 1600})) == 600
    assert life(unsigned({"exp": 1600 + 10**7})) == 172_800
    assert life(unsigned({"exp": 900})) == 3600
    assert life(unsigned({"exp": "x"})) == 3600
    assert life_of(Grant(token="t", lifetime=5.0, scope=None), 1000.0) == 5


def test_token_that_is_over_has_less_than_nothing_left() -> None:
    assert remaining_life(unsigned({"exp": 900}), 1000.0) == -100
    assert remaining_life("opaque", 1000.0) is None


def test_less_than_a_second_counts_and_nothing_does_not() -> None:
    grant = read_grant({"access_token": "t", "expires_in": 0.5})
    assert grant is not None
    assert grant.lifetime == 0.5
    assert life_of(Grant(token=unsigned({"exp": 1000}), lifetime=None, scope=None), 1000.0) == 3600
    assert life_of(Grant(token=unsigned({"exp": 1000.5}), lifetime=None, scope=None), 1000.0) == 0.5


def test_an_object_is_read_as_it_is() -> None:
    assert read_document(b'{"access_token": "t"}') == {"access_token": "t"}
