"""Needs come from the route and a body that is only looked at; no body raises."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.needs import (
    ChannelRule,
    NeedRules,
    Needs,
    Nested,
    first_nested,
    needs_of,
    read_document,
)

VOICE = frozenset({"recordings:export"})
DIGITAL = frozenset({"agent_scripting:export"})
RULES = NeedRules(
    scopes_by_method={"POST": VOICE},
    channels=(
        ChannelRule(
            fields=("channel", "mediaType"),
            values=frozenset({"whatsapp", "sms"}),
            scopes=DIGITAL,
            cost=3.0,
        ),
        ChannelRule(
            fields=("priority",), values=frozenset({"high"}), scopes=frozenset({"hurry"}), cost=1.5
        ),
    ),
)


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b"{}", {}),
        (b' {"a": [1]} ', {"a": [1]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"", None),
        (b"null", None),
        (b"[]", None),
        (b'"x"', None),
        (b"7", None),
        (b"a=1&b=2", None),
        (b'{"a": 1', None),
        (b"\xff\xfe\x00", None),
        (b'{"a": "\xff"}', None),
        (b"[" * 100_000, None),
        (b'{"a":' * 100_000, None),
        (b'{"a": ' + b"9" * 5000 + b"}", None),
    ],
)
def test_document(body: bytes, document: dict[str, Any] | None) -> None:
    assert read_document(body) == document


@pytest.mark.parametrize(
    ("method", "document", "needs"),
    [
        ("POST", None, Needs(VOICE)),
        ("POST", {}, Needs(VOICE)),
        ("GET", None, Needs(frozenset())),
        ("POST", {"channel": "voice"}, Needs(VOICE)),
        ("POST", {"channel": "whatsapp"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": "WhatsApp"}, Needs(DIGITAL, 3.0)),
        ("GET", {"channel": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"mediaType": "SMS"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": "voice", "mediaType": "sms"}, Needs(VOICE)),
        ("POST", {"mediaType": "voice", "channel": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"Channel": "sms"}, Needs(VOICE)),
        ("POST", {"channel": None, "mediaType": "sms"}, Needs(VOICE)),
        ("POST", {"channel": ["sms"]}, Needs(VOICE)),
        ("POST", {"channel": 7}, Needs(VOICE)),
        ("POST", {"export": {"channel": "sms"}}, Needs(VOICE)),
        ("POST", {"priority": "high"}, Needs(frozenset({"hurry"}), 1.5)),
        ("POST", {"priority": "high", "channel": "sms"}, Needs(DIGITAL | {"hurry"}, 3.0)),
    ],
)
def test_needs(method: str, document: dict[str, Any] | None, needs: Needs) -> None:
    """The first field that is present decides, and only at the top level."""
    assert needs_of(RULES, method, document) == needs


@pytest.mark.parametrize(
    ("rules", "matters"),
    [
        (NeedRules(scopes_by_method={"POST": VOICE}), False),
        (NeedRules(scopes_by_method={}, flat_fields=("legal_hold",)), True),
        (RULES, True),
    ],
)
def test_a_body_is_read_only_where_it_matters(rules: NeedRules, *, matters: bool) -> None:
    assert rules.look_at_body is matters


FLAT = ("legal_hold", "case_id")


@pytest.mark.parametrize(
    ("document", "nested"),
    [
        ({}, None),
        ({"legal_hold": True}, None),
        ({"legal_hold": None, "case_id": "x"}, None),
        ({"legal_hold": {}}, Nested("legal_hold", "/legal_hold")),
        ({"legal_hold": []}, Nested("legal_hold", "/legal_hold")),
        ({"metadata": {"legal_hold": True}}, Nested("legal_hold", "/metadata/legal_hold")),
        ({"a": [{}, {"b": {"case_id": 1}}]}, Nested("case_id", "/a/1/b/case_id")),
        ({"a/b": {"c~d": {"case_id": 1}}}, Nested("case_id", "/a~1b/c~0d/case_id")),
        ({"": {"case_id": 1}}, Nested("case_id", "//case_id")),
        ({"LEGAL_HOLD": {}}, None),
        ({"a": ["legal_hold"], "b": "legal_hold"}, None),
    ],
)
def test_nested(document: dict[str, Any], nested: Nested | None) -> None:
    """Below the top level, or no scalar on it; the pointer is written as RFC 6901 says."""
    assert first_nested(FLAT, document) == nested


def test_the_first_nested_field_is_the_first_in_the_document() -> None:
    document = {"x": {"y": {"case_id": 1}, "legal_hold": 1}, "legal_hold": {}}
    assert first_nested(FLAT, document) == Nested("case_id", "/x/y/case_id")
    assert first_nested(FLAT, dict(reversed(document.items()))) == Nested(
        "legal_hold", "/legal_hold"
    )


def test_no_field_no_search() -> None:
    assert first_nested((), {"legal_hold": {"legal_hold": {}}}) is None


def test_the_search_of_a_huge_body_ends() -> None:
    """It is a hint; what stands behind tens of thousands of others goes unseen."""
    assert first_nested(FLAT, {"many": [{}] * 200_000, "legal_hold": {}}) is None
    assert first_nested(FLAT, {"many": [{}] * 20_000, "legal_hold": {}}) == Nested(
        "legal_hold", "/legal_hold"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*FLAT, "a/b", "~"]), inner),
    max_leaves=12,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises(body: bytes) -> None:
    document = read_document(body)
    assert needs_of(RULES, "POST", document).cost in {1.0, 1.5, 3.0}
    if document is not None:
        nested = first_nested(FLAT, document)
        assert nested is None or nested.pointer.endswith(f"/{nested.field}")


@given(st.dictionaries(st.sampled_from([*FLAT, "a/b", "~"]), JSON))
def test_a_pointer_leads_to_the_field(document: dict[str, Any]) -> None:
    nested = first_nested(FLAT, document)
    if nested is None:
        return
    value: Any = document
    for key in nested.pointer.split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        value = value[int(name)] if isinstance(value, list) else value[name]
    assert nested.pointer.count("/") > 1 or isinstance(value, dict | list)
