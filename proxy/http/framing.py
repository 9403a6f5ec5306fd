"""How an answer to a caller is framed, and its head as bytes (RFC 9112 section 6).

The body of an answer ends in one of four ways: there is none, it has a length, it is chunked, or
the connection closes behind it. Only the fields of this framing, `Connection`, `Keep-Alive`, and a
missing `Date` (RFC 9110 section 6.6.1) are added. Fields are written in the encoding they were read
in, so that bytes beyond ASCII (obs-text, RFC 9110 section 5.5) pass unchanged.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, Literal, NamedTuple

from proxy.rules.headers import Field, content_length

_ENCODING: Final = ("utf-8", "surrogateescape")
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_NO_CONTENT: Final = HTTPStatus.NO_CONTENT.value
_WITHOUT_BODY: Final = frozenset({_NO_CONTENT, HTTPStatus.NOT_MODIFIED.value})
_DATE: Final = "\ndate: "
_LENGTH: Final = "\ncontent-length: "


Ending = Literal["nothing", "length", "last chunk", "close"]
"""What ends the body of an answer; nothing if there is no body."""


class Asked(NamedTuple):
    """What the framing of an answer needs to know about the request.

    `knows_chunks` is False for a caller of HTTP/1.0. `stays` is True if the connection stays open
    after the answer; it may then be idle for `idle_seconds`, which the answer announces.
    """

    method: str
    knows_chunks: bool
    stays: bool
    idle_seconds: int


class Head(NamedTuple):
    """The head of an answer as bytes, and what follows it.

    `length` is that of the body if it ends by its length. `closes`: the connection ends with it.
    """

    data: bytes
    ending: Ending
    length: int
    closes: bool


def frame(asked: Asked, status: int, reason: str, fields: Sequence[Field], date: str) -> Head:
    """Frame an answer.

    Content-Length, if present, is the length of its body. `date` is written if the fields have
    none. Raises ValueError if there are two lengths or one that is no number, or if a field would
    break its line.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
    names = f"\n{lines}".lower()
    has_length = _LENGTH in names
    if has_length and status == _NO_CONTENT:  # RFC 9110 section 8.6
        kept = [field for field in fields if field[0].lower() != "content-length"]
        return frame(asked, status, reason, kept, date)
    is_empty = asked.method == "HEAD" or status in _WITHOUT_BODY
    added = "" if _DATE in names else f"Date: {date}\r\n"
    length = _announced(names) if has_length else None
    ending = _ending(asked, length, is_empty=is_empty)
    if ending == "last chunk":
        added += "Transfer-Encoding: chunked\r\n"
    closes = ending == "close" or not asked.stays
    if closes:
        added += "Connection: close\r\n"
    else:  # RFC 9112 appendix C.2.2; Keep-Alive is a connection option, so Connection names it
        added += f"Connection: keep-alive\r\nKeep-Alive: timeout={asked.idle_seconds}\r\n"
    head = f"HTTP/1.1 {status} {reason or _PHRASES.get(status, '')}\r\n{lines}{added}\r\n"
    ends = len(fields) + 2 + added.count("\n")
    if head.count("\n") != ends or head.count("\r") != ends:
        raise ValueError("a field or the reason has a line end")
    return Head(head.encode(*_ENCODING), ending, length or 0, closes)


def _announced(names: str) -> int:
    """Return the one length that the fields announce."""
    _, first, *others = names.split(_LENGTH)
    length = content_length(first.partition("\r")[0])
    if any(content_length(other.partition("\r")[0]) != length for other in others):
        raise ValueError("there are two lengths")
    return length


def _ending(asked: Asked, length: int | None, *, is_empty: bool) -> Ending:
    if is_empty:
        return "nothing"
    if length is not None:
        return "length"
    return "last chunk" if asked.knows_chunks else "close"
