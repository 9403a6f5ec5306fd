"""Which header fields cross the proxy, in which direction, and which never do.

Fields are (name, value) pairs in the order they came, duplicates kept. Hop-by-hop fields and those
that `Connection` names are removed first (RFC 9110 section 7.6.1), then the calling code adds ours:
so a caller cannot remove one of ours by naming it in `Connection`.
"""

from collections.abc import Callable, Iterable, Sequence
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


class _Names(dict[bytes, str]):
    """Names as spelled on the wire, to the same as text; to nothing if such a field is dropped.

    The mapping of a parser may spell names in another way. Bytes that are not UTF-8 become lone
    surrogates. A name is read once; the next time the table knows it.
    """

    def __init__(self, is_dropped: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_dropped = is_dropped

    def __missing__(self, name: bytes) -> str:
        if len(self) >= _NAMES:  # so many names are not usual ones
            self.clear()
        text = name.decode("utf-8", "surrogateescape")
        kept = self[name] = "" if self._is_dropped(text.lower()) else text
        return kept


_FOR_API: Final = _Names(
    lambda low: low in _REQUEST_DROPPED or "_" in low or low.startswith("x-forwarded-")
)
_FOR_CALLER: Final = _Names(_RESPONSE_DROPPED.__contains__)


def request_fields(
    raw: Iterable[tuple[bytes, bytes]], values: Iterable[str], connection: Sequence[str]
) -> list[Field]:
    """Return the fields of a caller that go to the API.

    `raw` are all fields as on the wire, `values` their values as text, in the same order, and
    `connection` the values of the `Connection` fields. Framing is not forwarded: the body is sent
    with a length of its own. Names with `_` are dropped, since many servers read them as `-`.
    """
    return _kept(_FOR_API, raw, values, connection)


def response_fields(
    raw: Iterable[tuple[bytes, bytes]], values: Iterable[str], connection: Sequence[str]
) -> list[Field]:
    """Return the fields of the API that go to the caller; the arguments are the same."""
    return _kept(_FOR_CALLER, raw, values, connection)


def is_writable(value: str) -> bool:
    """True if a field value can be written: bytes that were not UTF-8 pass as they came.

    RFC 9110 section 5.5 forbids control characters other than tab, and calls such bytes obs-text.
    They are read as lone surrogates, those from U+DC80 to U+DCFF, which become the same bytes again
    when they are written.
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


def _kept(
    names: _Names,
    raw: Iterable[tuple[bytes, bytes]],
    values: Iterable[str],
    connection: Sequence[str],
) -> list[Field]:
    """Return the fields that the table keeps, can be written, and `Connection` does not name."""
    fields = [
        (name, value)
        for (wire_name, _), value in zip(raw, values, strict=True)
        if (name := names[wire_name])
    ]
    if not connection and is_writable("".join([value for _, value in fields])):
        return fields  # as nearly always: one look tells it
    nominated = _nominated(connection)
    return [
        (name, value)
        for name, value in fields
        if name.lower() not in nominated and is_writable(value)
    ]


def _nominated(connection: Sequence[str]) -> frozenset[str]:
    return frozenset(option.strip().lower() for value in connection for option in value.split(","))
