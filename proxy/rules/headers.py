"""Which header fields cross the proxy, in which direction, and which never do.

Fields are (name, value) pairs in the order they came, duplicates kept. Hop-by-hop fields and those
that `Connection` nominates are removed first (RFC 9110 section 7.6.1), ours are added by the
caller afterwards: so nobody can have one of ours removed by naming it in `Connection`.
"""

from collections.abc import Iterable, Sequence
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


def wire_fields(raw: Iterable[tuple[bytes, bytes]]) -> list[Field]:
    """Return fields in the spelling of the wire, which a parser's own mapping may not keep.

    Bytes that are not UTF-8 become lone surrogates.
    """
    return [
        (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
        for name, value in raw
    ]


def request_fields(fields: Iterable[Field], connection: Sequence[str]) -> list[Field]:
    """Return what of a caller's fields goes upstream.

    `connection` holds the values of the `Connection` fields. Framing is not forwarded: the body is
    sent with a length of its own. Names with `_` are dropped, since many servers read them as `-`.
    """
    dropped = _REQUEST_DROPPED | _nominated(connection) if connection else _REQUEST_DROPPED
    return [
        (name, value)
        for name, value in fields
        if (low := name.lower()) not in dropped
        and "_" not in low
        and not low.startswith("x-forwarded-")
        and is_writable(value)
    ]


def response_fields(fields: Iterable[Field], connection: Sequence[str]) -> list[Field]:
    """Return what of the API's fields goes to the caller."""
    dropped = _RESPONSE_DROPPED | _nominated(connection) if connection else _RESPONSE_DROPPED
    return [
        (name, value)
        for name, value in fields
        if name.lower() not in dropped and is_writable(value)
    ]


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


def _nominated(connection: Sequence[str]) -> frozenset[str]:
    return frozenset(option.strip().lower() for value in connection for option in value.split(","))
