"""Fields cross the proxy in order and unchanged, save those that belong to one hop."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.headers import (
    Field,
    content_length,
    has_passed,
    is_writable,
    request_fields,
    response_fields,
    via,
)

HOP_BY_HOP = [
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
]


def to_api(fields: Sequence[Field], connection: Sequence[str]) -> list[Field]:
    """Return what goes to the API of fields as text."""
    return request_fields(_as_received(fields), [value for _, value in fields], connection)


def to_caller(fields: Sequence[Field], connection: Sequence[str]) -> list[Field]:
    """Return what goes to the caller of fields as text."""
    return response_fields(_as_received(fields), [value for _, value in fields], connection)


def _as_received(fields: Sequence[Field]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("utf-8", "surrogatepass")) for name, value in fields]


@pytest.mark.parametrize(
    "name",
    [
        *HOP_BY_HOP,
        "Content-Length",
        "Expect",
        "Host",
        "HTTP2-Settings",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Via",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Anything",
        "x-forwarded-",
        "X-HTTP-Method",
        "X-HTTP-Method-Override",
        "X-Method-Override",
        "X_Forwarded_For",
        "Content_Length",
        "Client_Id",
        "_",
    ],
)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_field_that_does_not_go_upstream(name: str, spell: Callable[[str], str]) -> None:
    """Whatever its case; what surrounds it goes."""
    fields = [("A", "1"), (spell(name), "x"), ("B", "2")]
    assert to_api(fields, []) == [("A", "1"), ("B", "2")]


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Cookie",
        "Content-Type",
        "Content-Encoding",
        "Accept-Encoding",
        "User-Agent",
        "Idempotency-Key",
        "Prefer",
        "X-Request-Id",
        "X-Forwarded",
        "X-Forward-For",
        "Forwarded-For",
        "Via-Not",
        "ININ-Correlation-Id",
    ],
)
def test_field_that_goes_upstream(name: str) -> None:
    assert to_api([(name, "x")], []) == [(name, "x")]


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_field_that_does_not_go_to_the_caller(name: str) -> None:
    fields = [("A", "1"), (name.upper(), "x"), ("B", "2")]
    assert to_caller(fields, []) == [("A", "1"), ("B", "2")]


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "Content-Type",
        "Content-Encoding",
        "Set-Cookie",
        "Server",
        "Date",
        "Via",
        "Retry-After",
        "WWW-Authenticate",
        "snake_case",
        "X-Forwarded-For",
    ],
)
def test_field_that_goes_to_the_caller(name: str) -> None:
    assert to_caller([(name, "x")], []) == [(name, "x")]


@pytest.mark.parametrize(
    "connection",
    [
        ["x-drop"],
        ["X-DROP"],
        ["close, X-Drop"],
        [" \tX-Drop\t ,close"],
        ["close", "X-Drop"],
        [",,X-Drop,,"],
        ["keep-alive,x-drop,keep-alive"],
    ],
)
def test_field_that_connection_nominates_stays_behind(connection: list[str]) -> None:
    """In any case, list form and place (RFC 9110 section 7.6.1), both ways."""
    fields = [("X-Drop", "1"), ("X-Drop-Not", "2"), ("x-drop", "3"), ("Drop", "4")]
    assert to_api(fields, connection) == [("X-Drop-Not", "2"), ("Drop", "4")]
    assert to_caller(fields, connection) == [("X-Drop-Not", "2"), ("Drop", "4")]


def test_nominating_does_not_bring_back_what_is_always_dropped() -> None:
    fields = [("Connection", "close"), ("TE", "trailers"), ("Host", "evil.example")]
    assert to_api(fields, ["close, x-other"]) == []


def test_order_and_duplicates_are_kept() -> None:
    fields = [("B", "1"), ("A", "2"), ("B", "3"), ("b", "1"), ("A", "2"), ("C", "")]
    assert to_api(fields, []) == fields
    assert to_caller(fields, ["close"]) == fields


@pytest.mark.parametrize(
    "value",
    ["", "plain", "tab\tinside", "naïve", "日本", "\U0001f600", "\x80", "\xff", "\u2028", "\ue000"],
)
def test_value_that_can_be_written(value: str) -> None:
    assert is_writable(value)
    assert to_api([("A", value)], []) == [("A", value)]
    assert to_caller([("A", value)], []) == [("A", value)]


@pytest.mark.parametrize(
    "value",
    [
        "\x00",
        "a\x01b",
        "a\nb",
        "a\r\nSet-Cookie: b",
        "\x1f",
        "\x1b[31m",
        "a\x7f",
        "\ud800",
        "a\udc7f",
        "b\udd00",
        "\udfff!",
    ],
)
def test_value_that_cannot_be_written_takes_its_field_along(value: str) -> None:
    """Control characters, and lone surrogates that stand for no byte."""
    assert not is_writable(value)
    assert to_api([("A", value), ("B", "2")], []) == [("B", "2")]
    assert to_caller([("A", value), ("B", "2")], []) == [("B", "2")]


@pytest.mark.parametrize("value", ["\udc80", "x\udce9", "na\udcefve\udcff", "日本\udc80"])
def test_bytes_that_are_not_utf_8_pass_as_they_came(value: str) -> None:
    assert to_caller([("A", value)], []) == [("A", value)]
    assert to_api([("A", value)], []) == [("A", value)]


@given(st.text(st.characters(codec=None)))
def test_writable_values_end_where_they_should_and_survive_encoding(value: str) -> None:
    """Nothing that passes can break a line or fail on the wire."""
    if is_writable(value):
        sent = value.encode("utf-8", "surrogateescape")
        assert not set(sent) & (set(range(32)) - {9} | {127})


NAMES = st.sampled_from(["A", "b-c", "Host", "te", "X-Forwarded-For", "d_e", "Via", "Keep-Alive"])
FIELDS = st.lists(st.tuples(NAMES, st.text(max_size=5)), max_size=10)


@given(FIELDS, st.lists(st.text(max_size=10) | NAMES, max_size=3))
def test_any_fields_come_out_as_a_part_of_what_went_in(
    fields: list[Field], connection: list[str]
) -> None:
    """Nothing is added, changed or moved."""
    for kept in (to_api(fields, connection), to_caller(fields, connection)):
        left = iter(fields)
        assert all(field in left for field in kept)


def test_fields_of_the_wire_keep_spelling_order_and_every_byte() -> None:
    """Bytes that are not UTF-8 come as lone surrogates, which go out as the same bytes."""
    raw = [(b"X-aBc", b"1"), (b"x-ABC", b"na\xc3\xafve"), (b"X-aBc", b"\xff"), (b"\xfe", b"2")]
    values = ["1", "naïve", "\udcff", "2"]
    fields = [("X-aBc", "1"), ("x-ABC", "naïve"), ("X-aBc", "\udcff"), ("\udcfe", "2")]
    assert request_fields(raw, values, []) == fields
    assert response_fields(raw, values, []) == fields


def test_more_names_than_are_remembered_are_read_alike() -> None:
    """However many names callers make up, a name means the same the next time."""
    many = [(f"A{number}", "x") for number in range(1000)]
    for fields in ([*many, ("Host", "x")], [("host", "x"), *many]):
        assert to_api(fields, []) == many


@pytest.mark.parametrize(
    ("version", "received", "value"),
    [
        ((1, 1), [], "1.1 export-proxy-1f"),
        ((1, 0), [], "1.0 export-proxy-1f"),
        ((1, 1), ["1.1 edge"], "1.1 edge, 1.1 export-proxy-1f"),
        ((1, 1), ["1.0 a, 1.1 b", "2 c"], "1.0 a, 1.1 b, 2 c, 1.1 export-proxy-1f"),
    ],
)
def test_via_is_appended_to(version: tuple[int, int], received: list[str], value: str) -> None:
    assert via(version, "export-proxy-1f", received) == value


@pytest.mark.parametrize(
    "received",
    [
        ["1.1 export-proxy-1f"],
        ["1.0 edge, 1.1 export-proxy-1f"],
        ["1.1 export-proxy-1f, 1.1 edge"],
        ["1.0 edge", "HTTP/1.1 export-proxy-1f (comment)"],
        ["1.1  \t export-proxy-1f"],
    ],
)
def test_request_that_was_here_before_is_recognised(received: list[str]) -> None:
    assert has_passed("export-proxy-1f", received)


@pytest.mark.parametrize(
    "received", [[], [""], ["1.1 edge"], ["1.1 export-proxy-2e"], ["1.1 export-proxy-1f2"]]
)
def test_request_that_was_elsewhere_is_not_taken_for_one(received: list[str]) -> None:
    """Another instance of this proxy in the chain is no loop."""
    assert not has_passed("export-proxy-1f", received)


@given(st.lists(st.text(st.characters(codec="ascii"), max_size=20), max_size=3))
def test_whatever_came_before_a_second_pass_is_recognised(received: list[str]) -> None:
    first = via((1, 1), "export-proxy-1f", received)
    assert has_passed("export-proxy-1f", [via((1, 1), "edge", [first])])


@pytest.mark.parametrize(
    ("value", "length"),
    [
        pytest.param("0", 0, id="none"),
        pytest.param("00", 0, id="none, twice"),
        pytest.param("007", 7, id="zeros first"),
        pytest.param("7".zfill(5000), 7, id="thousands of zeros first"),
        pytest.param("9" * 19, 10**19 - 1, id="19 digits"),
        pytest.param("1" * 20, 10**19, id="20 digits"),
        pytest.param("9" * 5000, 10**19, id="thousands of digits"),
    ],
)
def test_a_length_has_any_number_of_digits(value: str, length: int) -> None:
    assert content_length(value) == length


@pytest.mark.parametrize("value", ["", " 1", "1 ", "+1", "-1", "1, 1", "0x1", "1_0", "²", "\u0661"])
def test_a_length_has_digits_only(value: str) -> None:
    with pytest.raises(ValueError, match="no number"):
        content_length(value)


def test_blanks_and_capitals_beside_other_letters_can_be_written() -> None:
    assert is_writable("\xe9 a A")
