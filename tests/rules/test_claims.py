"""Claims are read strictly, scopes from wherever they stand; nothing a token holds raises."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.claims import MAX_TOKEN, Claims, held_scopes, mentions, read_claims
from tests.kit.tokens import segment, unsigned

ISSUER = "https://login.example/"


def claims(**payload: Any) -> Claims:
    return Claims({}, payload)


def test_header_and_payload_of_a_jwt() -> None:
    token = unsigned({"sub": "london", "exp": 7}, {"alg": "RS256", "kid": "k"})
    assert read_claims(token) == Claims({"alg": "RS256", "kid": "k"}, {"sub": "london", "exp": 7})


def test_a_signature_is_not_looked_at() -> None:
    assert read_claims(unsigned({"a": 1}, signature="")) is not None
    assert read_claims(unsigned({"a": 1}, signature="!")) is not None


HEAD = segment({"alg": "RS256"})
BODY = segment({"sub": "london"})


def with_payload(text: bytes) -> str:
    return f"{HEAD}.{segment(text)}.s"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "opaque",
        ".",
        "..",
        f"{HEAD}.{BODY}",
        f"{HEAD}.{BODY}.s.",
        f"{HEAD}.{BODY}.a.b.c",
        f"{HEAD}..s",
        f".{BODY}.s",
        f"{HEAD}.{BODY}=.s",
        f"{HEAD}=.{BODY}.s",
        f"{HEAD}.{BODY}A.s",
        f"{HEAD}. {BODY}.s",
        f"{HEAD}.{BODY}\n.s",
        f"{HEAD}.{BODY[:-1]}é.s",
        with_payload(b"[]"),
        f"{segment(b'[]')}.{BODY}.s",
        with_payload(b"null"),
        with_payload(b"7"),
        with_payload(b"{"),
        with_payload(b"{} {}"),
        with_payload(json.dumps({"a": 1}).encode("utf-16")),
        with_payload(json.dumps({"a": 1}).encode("utf-8-sig")),
        with_payload(b'{"a": "' + bytes([0xFF]) + b'"}'),
        with_payload(b"[" * 3000 + b"]" * 3000),
        with_payload(b'{"exp": ' + b"9" * 5000 + b"}"),
        with_payload(b'{"sub": "london", "sub": "paris"}'),
        with_payload(b'{"a": {"b": 1, "b": 1}}'),
        unsigned({"sub": "x"}, b'{"alg": "none", "alg": "RS256"}'),
    ],
)
def test_anything_else_has_no_claims(token: str) -> None:
    """Not three parts, not base64url, not an object of JSON in UTF-8, or a name twice."""
    assert read_claims(token) is None


def test_standard_base64_is_another_alphabet() -> None:
    text = json.dumps({"a": "???>>>~~~"}).encode()
    standard = base64.b64encode(text).decode().rstrip("=")
    assert "/" in standard
    assert read_claims(f"{HEAD}.{standard}.s") is None
    assert read_claims(f"{HEAD}.{segment(text)}.s") is not None


def test_the_longest_token_that_is_read() -> None:
    token = unsigned({"sub": "london"}, signature="")
    assert read_claims(token.ljust(MAX_TOKEN, "s")) is not None
    assert read_claims(token.ljust(MAX_TOKEN + 1, "s")) is None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0.0),
        (-1, -1.0),
        (1_700_000_000, 1_700_000_000.0),
        (1.5, 1.5),
        (999_999_999_999, 999_999_999_999.0),
        (10**12, None),
        (-(10**12), None),
        (10**400, None),
        (float("inf"), None),
        (float("-inf"), None),
        (float("nan"), None),
        (True, None),
        (False, None),
        ("1700000000", None),
        (None, None),
        ([1], None),
        ({}, None),
    ],
)
def test_number(value: object, number: float | None) -> None:
    """A NumericDate is a JSON number, and one of this millennium or near it."""
    assert claims(exp=value).number("exp") == number


def test_an_absent_number() -> None:
    assert claims().number("exp") is None


@pytest.mark.parametrize(
    ("payload", "scopes"),
    [
        ({}, None),
        ({"sub": "london"}, None),
        ({"scope": "a b"}, {"a", "b"}),
        ({"scope": ""}, set()),
        ({"scope": "  a   b "}, {"a", "b"}),
        ({"scp": ["a", "b"]}, {"a", "b"}),
        ({"scp": "a"}, {"a"}),
        ({"permissions": ["recordings:export"]}, {"recordings:export"}),
        ({"scope": "a", "scp": ["b"], "permissions": ["c"]}, {"a", "b", "c"}),
        ({"scope": ["a", 7, None, ["b"]]}, {"a"}),
        ({"scope": None}, set()),
        ({"scope": 7}, set()),
        ({"scope": {"a": 1}}, set()),
    ],
)
def test_scopes(payload: dict[str, Any], scopes: set[str] | None) -> None:
    """Of a token without any of the three claims nobody can say what it holds."""
    assert claims(**payload).scopes() == scopes


@pytest.mark.parametrize(
    ("token_claims", "answer", "scopes"),
    [
        (None, None, None),
        (None, "a b", {"a", "b"}),
        (claims(sub="x"), None, None),
        (claims(sub="x"), "a", {"a"}),
        (claims(scope="a"), "a b", {"a"}),
        (claims(scope=""), "a b", set()),
    ],
)
def test_the_token_itself_is_believed_before_the_answer_it_came_in(
    token_claims: Claims | None, answer: str | None, scopes: set[str] | None
) -> None:
    assert held_scopes(token_claims, answer) == scopes


@pytest.mark.parametrize(
    "token",
    [
        unsigned({"iss": ISSUER}),
        unsigned({"iss": ISSUER, "a": 1}),
        unsigned({"iss": ISSUER, "a": 11}),
        unsigned(b'{"iss": "https://login.example/", "iss": "x"}'),
        unsigned(b'{"iss": "https://login.example/", "exp": ' + b"9" * 5000 + b"}"),
        unsigned(b'{"iss": "https://login.example/"'),
        unsigned({"iss": ISSUER, "pad": "x" * 20_000}),
        f"{HEAD}.{segment({'iss': ISSUER, 'a': 1})}=",
        f"{HEAD}.{segment({'iss': ISSUER, 'a': 1})}.a.b.c",
    ],
)
def test_a_payload_that_mentions_the_issuer(token: str) -> None:
    assert mentions(token, ISSUER)


@pytest.mark.parametrize(
    "token", ["", "opaque", "a.b", "a.é.c", unsigned({"iss": "other"}), f"{segment(ISSUER)}.x.y"]
)
def test_a_payload_that_does_not(token: str) -> None:
    assert not mentions(token, ISSUER)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
PAYLOADS = st.dictionaries(st.sampled_from(["scope", "scp", "permissions", "exp", "iss"]), JSON)
TOKENS = st.one_of(
    st.text(),
    st.text(st.sampled_from("eyJ.=-_A{")),
    st.lists(st.binary().map(segment), max_size=6).map(".".join),
    PAYLOADS.map(unsigned),
)


@given(TOKENS, st.none() | st.text())
def test_no_token_raises(token: str, answer: str | None) -> None:
    read = read_claims(token)
    scopes = held_scopes(read, answer)
    assert scopes is None or all(isinstance(scope, str) for scope in scopes)
    assert isinstance(mentions(token, ISSUER), bool)
    for name in read.payload if read else ():
        number = read.number(name) if read else None
        assert number is None or abs(number) < 1e12
