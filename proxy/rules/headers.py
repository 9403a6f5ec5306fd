"""Which header fields cross the proxy, in which direction, and which never do.

Fields are (name, value) pairs in the order they came, duplicates kept. Hop-by-hop fields and those
that `Connection` names are removed first (RFC 9110 section 7.6.1), then the calling code adds ours:
so a caller cannot remove one of ours by naming it in `Connection`.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

Field = tuple[str, str]

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Addressed to a proxy (RFC 9110 section 11.7), or to this hop's framing; and the fields by which
# some servers let a request be another method than the one that was matched.
_REQUEST_ONLY: Final = frozenset(
    {
        "content-length",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "proxy-authenticate",
        "proxy-authorization",
        "via",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
    }
)
_REQUEST_DROPPED: Final = _HOP_BY_HOP | _REQUEST_ONLY
_RESPONSE_DROPPED: Final = _HOP_BY_HOP
_MOST_DIGITS: Final = 19
_NO_BODY_HAS: Final = 10**_MOST_DIGITS  # bytes
_NAMES: Final = 256  # names whose reading is kept; a usual request and its answer have a dozen


def wire_fields(raw: Iterable[tuple[bytes, bytes]], values: Iterable[str]) -> list[Field]:
    """Return fields as spelled on the wire, which a parser's own mapping may not keep.

    `values` are the same fields' values as that mapping has them, in the same order. Bytes that are
    not UTF-8 become lone surrogates, in both.
    """
    return [(_spelling(name), value) for (name, _), value in zip(raw, values, strict=True)]


def request_fields(fields: Iterable[Field], connection: Sequence[str]) -> list[Field]:
    """Return the fields of a caller that go to the API.

    `connection` holds the values of the `Connection` fields. Framing is not forwarded: the body is
    sent with a length of its own. Names with `_` are dropped, since many servers read them as `-`.
    """
    return _kept([field for field in fields if _is_for_api(field[0])], connection)


def response_fields(fields: Iterable[Field], connection: Sequence[str]) -> list[Field]:
    """Return the fields of the API that go to the caller."""
    return _kept([field for field in fields if _is_for_caller(field[0])], connection)


def is_writable(value: str) -> bool:
    """True if a field value can be written: bytes that were not UTF-8 pass as they came.

    RFC 9110 section 5.5 forbids control characters other than tab, and calls such bytes obs-text.
    `wire_fields` gives them as lone surrogates, those from U+DC80 to U+DCFF, which become the same
    bytes again when they are written.
    """
    if value.isascii() and value.isprintable():
        return True
    return not any(
        (char < " " and char != "\t")
        or char == "\x7f"
        or "\ud800" <= char < "\udc80"
        or "\udcff" < char <= "\udfff"
        for char in value
    )


def via(version: tuple[int, int], pseudonym: str, received: Sequence[str]) -> str:
    """Return the `Via` value to send on: what came, then this hop (RFC 9110 section 7.6.3)."""
    return ", ".join((*received, f"{version[0]}.{version[1]} {pseudonym}"))


def has_passed(pseudonym: str, received: Sequence[str]) -> bool:
    """True if one of the received `Via` values names this proxy."""
    return any(pseudonym in hop.split() for value in received for hop in value.split(","))


def content_length(value: str) -> int:
    """Return the bytes that a `Content-Length` of ASCII digits announces (RFC 9110 section 8.6).

    It may begin with any number of zeros; more than `_MOST_DIGITS` others count as `_NO_BODY_HAS`.
    Raises ValueError if it is no such number.
    """
    if not (value.isascii() and value.isdigit()):
        raise ValueError("a length that is no number")
    digits = value.lstrip("0")  # `int` refuses text of thousands of digits
    return int(digits or "0") if len(digits) <= _MOST_DIGITS else _NO_BODY_HAS


def _kept(fields: list[Field], connection: Sequence[str]) -> list[Field]:
    """Return the fields that can be written and that `Connection` does not name."""
    if not connection and is_writable("".join([value for _, value in fields])):
        return fields  # as nearly always: one look tells it
    nominated = _nominated(connection)
    return [
        (name, value)
        for name, value in fields
        if name.lower() not in nominated and is_writable(value)
    ]


@lru_cache(maxsize=_NAMES)
def _spelling(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=_NAMES)
def _is_for_api(name: str) -> bool:
    low = name.lower()
    return low not in _REQUEST_DROPPED and "_" not in low and not low.startswith("x-forwarded-")


@lru_cache(maxsize=_NAMES)
def _is_for_caller(name: str) -> bool:
    return name.lower() not in _RESPONSE_DROPPED


def _nominated(connection: Sequence[str]) -> frozenset[str]:
    return frozenset(option.strip().lower() for value in connection for option in value.split(","))
