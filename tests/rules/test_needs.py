"""Needs come from the route and a body that is only looked at; no body raises."""

import gzip
import json
import tracemalloc
import zlib
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.needs import (
    ChannelRule,
    Document,
    NeedRules,
    Needs,
    Nested,
    Unreadable,
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


MAX_SIZE = 2_000


def document_of(value: object) -> Document:
    """What is read of a body that holds this value as JSON."""
    return read_document(json.dumps(value).encode(), max_size=MAX_SIZE)


@pytest.mark.parametrize(
    ("body", "members"),
    [
        (b"{}", ()),
        (b' {"a": [1]} ', (("a", [1]),)),
        (b'\xef\xbb\xbf{"a": 1}', (("a", 1),)),
        ('{"a": "x"}'.encode("utf-16"), (("a", "x"),)),
        (b'{"a": 1, "a": 2}', (("a", 1), ("a", 2))),
        (b'{"a": {"b": null}}', (("a", (("b", None),)),)),
        (b'{"a": ' + b"9" * 5000 + b"}", (("a", inf),)),
        (b"null", ()),
        (b"[]", ()),
        (b'"x"', ()),
        (b"7", ()),
    ],
)
def test_members(body: bytes, members: tuple[tuple[str, Any], ...]) -> None:
    """All members of an object in their order; no members where it is JSON of another type."""
    assert read_document(body, max_size=MAX_SIZE) == members


@pytest.mark.parametrize(
    "body",
    [
        b"a=1&b=2",
        b" ",
        b'{"a": 1',
        b'{"a": 1} x',
        b'{"a": 1}{"b": 2}',
        b"\xff\xfe\x00",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_a_body_that_is_no_json_is_unreadable(body: bytes) -> None:
    assert read_document(body, max_size=MAX_SIZE) == Unreadable()


def test_no_body_is_no_document() -> None:
    assert read_document(b"", ["gzip"], max_size=MAX_SIZE) is None


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the same bytes in every process of a run


def bare_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


SMS = b'{"channel": "sms"}'


@pytest.mark.parametrize(
    ("body", "codings"),
    [
        (SMS, ["identity"]),
        (SMS, [""]),
        (gzipped(SMS), ["gzip"]),
        (gzipped(SMS), ["X-GZip"]),
        (zlib.compress(SMS), ["deflate"]),
        (bare_deflate(SMS), ["deflate"]),
        (gzipped(zlib.compress(SMS)), ["deflate, gzip"]),
        (gzipped(zlib.compress(SMS)), ["deflate", "gzip"]),
    ],
)
def test_a_coded_body_is_read(body: bytes, codings: list[str]) -> None:
    assert read_document(body, codings, max_size=MAX_SIZE) == (("channel", "sms"),)


@pytest.mark.parametrize(
    ("body", "codings"),
    [
        (SMS, ["gzip"]),
        (SMS, ["br"]),
        (SMS, ["zstd"]),
        (gzipped(SMS)[:-3], ["gzip"]),
        (gzipped(SMS) + b"x", ["gzip"]),
        (gzipped(SMS), ["deflate, gzip"]),
        (gzipped(b" " * MAX_SIZE + SMS), ["gzip"]),
    ],
)
def test_a_coded_body_that_cannot_be_undone_is_unreadable(body: bytes, codings: list[str]) -> None:
    """An unknown coding, broken data, or more of it than a body may have."""
    assert read_document(body, codings, max_size=MAX_SIZE) == Unreadable()


def test_a_bomb_is_not_inflated() -> None:
    bomb = gzipped(bytes(50_000_000))
    tracemalloc.start()
    try:
        assert read_document(bomb, ["gzip"], max_size=MAX_SIZE) == Unreadable()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("method", "value", "needs"),
    [
        ("POST", {}, Needs(VOICE)),
        ("POST", [{"channel": "sms"}], Needs(VOICE)),
        ("POST", {"channel": "voice"}, Needs(VOICE)),
        ("POST", {"channel": "whatsapp"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": "WhatsApp"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": " whatsapp\n"}, Needs(DIGITAL, 3.0)),
        ("GET", {"channel": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"mediaType": "SMS"}, Needs(DIGITAL, 3.0)),
        ("POST", {"MEDIATYPE": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"Channel": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {" channel ": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": "voice", "mediaType": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"mediaType": "voice", "channel": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": None, "mediaType": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": "", "mediaType": "sms"}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": ["voice", "sms"]}, Needs(DIGITAL, 3.0)),
        ("POST", {"channel": {"name": "sms"}}, Needs(VOICE)),
        ("POST", {"channel": 7}, Needs(VOICE)),
        ("POST", {"channel": None}, Needs(VOICE)),
        ("POST", {"export": {"channel": "sms"}}, Needs(VOICE)),
        ("POST", {"priority": "high"}, Needs(frozenset({"hurry"}), 1.5)),
        ("POST", {"priority": "high", "channel": "sms"}, Needs(DIGITAL | {"hurry"}, 3.0)),
    ],
)
def test_needs(method: str, value: object, needs: Needs) -> None:
    """Every listed field counts, in any case, and only at the top level."""
    assert needs_of(RULES, method, document_of(value)) == needs


@pytest.mark.parametrize("body", [b'{"channel": "sms", "channel": "voice"}', SMS[:-1], b"x"])
def test_what_may_be_digital_needs_what_digital_needs(body: bytes) -> None:
    """The first of two equal keys counts too; an unreadable body may be any channel."""
    needs = needs_of(RULES, "POST", read_document(body, max_size=MAX_SIZE))
    assert needs.scopes >= DIGITAL
    assert needs.cost == 3.0


def test_an_unreadable_body_needs_the_scopes_of_all_channels() -> None:
    assert needs_of(RULES, "POST", Unreadable()) == Needs(DIGITAL | {"hurry"}, 3.0)


@pytest.mark.parametrize(("method", "scopes"), [("POST", VOICE), ("GET", frozenset())])
def test_an_absent_body_needs_what_the_route_needs(method: str, scopes: frozenset[str]) -> None:
    assert needs_of(RULES, method, None) == Needs(scopes)


def test_an_unreadable_body_on_a_route_without_channels_needs_what_the_route_needs() -> None:
    rules = NeedRules(scopes_by_method={"POST": VOICE}, flat_fields=FLAT)
    assert needs_of(rules, "POST", Unreadable()) == Needs(VOICE)


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
def test_nested(document: object, nested: Nested | None) -> None:
    """Below the top level, or no scalar on it; the pointer is written as RFC 6901 says."""
    assert first_nested(FLAT, document_of(document)) == nested


def test_the_first_nested_field_is_the_first_in_the_document() -> None:
    document = {"x": {"y": {"case_id": 1}, "legal_hold": 1}, "legal_hold": {}}
    assert first_nested(FLAT, document_of(document)) == Nested("case_id", "/x/y/case_id")
    assert first_nested(FLAT, document_of(dict(reversed(document.items())))) == Nested(
        "legal_hold", "/legal_hold"
    )


def test_no_field_no_search() -> None:
    assert first_nested((), document_of({"legal_hold": {"legal_hold": {}}})) is None


def test_the_search_of_a_huge_body_ends() -> None:
    """It is a hint; what stands behind tens of thousands of others goes unseen."""
    assert first_nested(FLAT, document_of({"many": [{}] * 200_000, "legal_hold": {}})) is None
    assert first_nested(FLAT, document_of({"many": [{}] * 20_000, "legal_hold": {}})) == Nested(
        "legal_hold", "/legal_hold"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*FLAT, "a/b", "~"]), inner),
    max_leaves=12,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises(body: bytes) -> None:
    document = read_document(body, max_size=MAX_SIZE)
    assert needs_of(RULES, "POST", document).cost in {1.0, 1.5, 3.0}
    nested = first_nested(FLAT, document)
    assert nested is None or nested.pointer.endswith(f"/{nested.field}")


@given(st.dictionaries(st.sampled_from([*FLAT, "a/b", "~"]), JSON))
def test_a_pointer_leads_to_the_field(document: dict[str, Any]) -> None:
    nested = first_nested(FLAT, document_of(document))
    if nested is None:
        return
    value: Any = document
    for key in nested.pointer.split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        value = value[int(name)] if isinstance(value, list) else value[name]
    assert nested.pointer.count("/") > 1 or isinstance(value, dict | list)


def test_a_channel_is_found_whatever_the_case_of_its_configured_field() -> None:
    channel = ChannelRule(
        fields=("mediaType",), values=frozenset({"sms"}), scopes=DIGITAL, cost=3.0
    )
    rules = NeedRules(scopes_by_method={}, channels=(channel,))
    assert needs_of(rules, "POST", document_of({"MEDIATYPE": "sms"})) == Needs(DIGITAL, 3.0)


def test_bare_deflate_that_resembles_a_zlib_header_is_read() -> None:
    """Its first two bytes are a multiple of 31, as those of zlib are, but name no method 8."""
    body = bare_deflate(b"  " + SMS)
    assert int.from_bytes(body[:2]) % 31 == 0
    assert read_document(body, ["deflate"], max_size=MAX_SIZE) == (("channel", "sms"),)


def test_a_body_with_a_lone_surrogate_is_read() -> None:
    body = json.dumps({"a": "x"}).replace("x", "\ud800").encode("utf-16-le", "surrogatepass")
    assert read_document(body, max_size=MAX_SIZE) == (("a", "\ud800"),)
