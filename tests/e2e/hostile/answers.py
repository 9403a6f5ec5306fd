"""Answers of an API that has gone wrong, or is not one: one row each.

`status` is what the caller gets; 502 is our own `bad-upstream`. The API sees one request, whatever
it answers. What is passed on must be HTTP to h11, whatever came: `dropped` are field names that
came and may not be written (RFC 9110 section 5.5), `kept` fields that pass all the same.

The parser of answers is lenient on purpose (servers are), so what it lets through is judged again.
RFC 9112 sections 2.2, 5 and 6; CWE-113 (response splitting), CWE-444.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_FIELD = 65_536  # of an answer, whatever limits.max_header says


@dataclass(frozen=True, slots=True)
class Row:
    """What the API sends, and what becomes of it."""

    sent: bytes
    status: int
    body: bytes = b""
    kept: Sequence[tuple[bytes, bytes]] = ()
    dropped: Sequence[bytes] = ()
    is_complete: bool = True


def answer(*fields: bytes, body: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((line, *fields, b"", b"")) + body


def unusable(sent: bytes) -> Row:
    return Row(sent, 502)


def passed(
    sent: bytes, *kept: tuple[bytes, bytes], dropped: Sequence[bytes] = (), body: bytes = b"ok"
) -> Row:
    return Row(sent, 200, body, kept, dropped)


LENGTH = b"Content-Length: 2"

FRAMING = {
    "length and chunked": unusable(
        answer(LENGTH, b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n")
    ),
    "two lengths that differ": unusable(answer(LENGTH, b"Content-Length: 3", body=b"ok!")),
    "two lengths that agree": unusable(answer(LENGTH, LENGTH, body=b"ok")),
    "a list of lengths": unusable(answer(b"Content-Length: 2,2", body=b"ok")),
    "a signed length": unusable(answer(b"Content-Length: +2", body=b"ok")),
    "a negative length": unusable(answer(b"Content-Length: -2", body=b"ok")),
    "a length beyond 64 bits": unusable(
        answer(b"Content-Length: 18446744073709551618", body=b"ok")
    ),
    "a chunk size that is no number": unusable(
        answer(b"Transfer-Encoding: chunked", body=b"zz\r\nok\r\n0\r\n\r\n")
    ),
    "a negative chunk size": unusable(
        answer(b"Transfer-Encoding: chunked", body=b"-2\r\nok\r\n0\r\n\r\n")
    ),
    "a broken chunk behind a good one": Row(
        answer(b"Transfer-Encoding: chunked", body=b"2\r\nok\r\nzz\r\n"), 502
    ),
    "no content, with a length": unusable(
        answer(LENGTH, body=b"ok", line=b"HTTP/1.1 204 No Content")
    ),
    "chunked in HTTP/1.0": unusable(
        answer(
            b"Transfer-Encoding: chunked",
            body=b"2\r\nok\r\n0\r\n\r\n",
            line=b"HTTP/1.0 200 OK",
        )
    ),
    "no framing at all, and a close": passed(answer(b"X-A: 1", body=b"ok"), (b"X-A", b"1")),
    "a coding before the chunks": unusable(
        answer(b"Transfer-Encoding: gzip, chunked", body=b"2\r\nok\r\n0\r\n\r\n")
    ),
    "chunked twice": unusable(
        answer(b"Transfer-Encoding: chunked, chunked", body=b"2\r\nok\r\n0\r\n\r\n")
    ),
    "a coding in a field of its own": unusable(
        answer(
            *(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
            body=b"2\r\nok\r\n0\r\n\r\n",
        )
    ),
    "a coding and no chunks": unusable(answer(b"Transfer-Encoding: gzip", body=b"ok")),
    "chunked in capitals": passed(
        answer(b"Transfer-Encoding: Chunked", body=b"2\r\nok\r\n0\r\n\r\n")
    ),
    "more bytes than the length": unusable(answer(LENGTH, body=b"ok, and more")),
    "trailers": passed(
        answer(b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n"),
        dropped=[b"X-Trailer"],
    ),
}

STATUS_LINES = {
    "another protocol": unusable(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n"),
    "TLS": unusable(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n"),
    "an HTML page and no head": unusable(b"<html>502 Bad Gateway</html>\r\n\r\n"),
    "HTTP/2": unusable(b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80\0\x04\0\x01\0\0\r\n\r\n"),
    "a status of 99": unusable(answer(LENGTH, body=b"ok", line=b"HTTP/1.1 99 Low")),
    "a status of 600": unusable(answer(LENGTH, body=b"ok", line=b"HTTP/1.1 600 High")),
    "a status of 999": unusable(answer(LENGTH, body=b"ok", line=b"HTTP/1.1 999 Higher")),
    "a status of four digits": unusable(answer(LENGTH, body=b"ok", line=b"HTTP/1.1 2000 OK")),
    "a status that is no number": unusable(answer(LENGTH, body=b"ok", line=b"HTTP/1.1 2xx OK")),
    "a signed status": unusable(answer(LENGTH, body=b"ok", line=b"HTTP/1.1 +200 OK")),
    "a switch of protocols nobody asked for": unusable(
        answer(b"Connection: upgrade", b"Upgrade: x", line=b"HTTP/1.1 101 Switching Protocols")
    ),
    "a control character in the phrase": passed(
        answer(LENGTH, body=b"ok", line=b"HTTP/1.1 200 O\x01K")
    ),
    "no phrase": passed(answer(LENGTH, body=b"ok", line=b"HTTP/1.1 200 ")),
    "interim answers first": passed(
        answer(line=b"HTTP/1.1 100 Continue")
        + answer(b"Link: </a>; rel=preload", line=b"HTTP/1.1 103 Early Hints")
        + answer(LENGTH, body=b"ok"),
        dropped=[b"Link"],
    ),
}

FIELDS = {
    "a NUL in a value": unusable(answer(b"X-A: a\0b", LENGTH, body=b"ok")),
    "a control character in a value": passed(
        answer(b"X-A: a\x01b", b"X-B: 1", LENGTH, body=b"ok"), (b"X-B", b"1"), dropped=[b"X-A"]
    ),
    "an escape sequence in a value": passed(
        answer(b"X-A: \x1b[31m", LENGTH, body=b"ok"), dropped=[b"X-A"]
    ),
    "a bare CR in a value": unusable(answer(b"X-A: a\rSet-Cookie: b", LENGTH, body=b"ok")),
    "bytes that are no UTF-8": passed(
        answer(b"X-A: \xff", b"X-B: 1", LENGTH, body=b"ok"), (b"X-A", b"\xff"), (b"X-B", b"1")
    ),
    "a folded field": passed(
        answer(b"X-A: a\r\n b", LENGTH, body=b"ok"),
    ),
    "a space in a name": unusable(answer(b"X A: a", LENGTH, body=b"ok")),
    "a name beyond ASCII": unusable(answer(b"X-\xc3\xa4: a", LENGTH, body=b"ok")),
    "no name": unusable(answer(b": a", LENGTH, body=b"ok")),
    "no colon": unusable(answer(b"X-A", LENGTH, body=b"ok")),
    "bare LF everywhere": passed(
        answer(b"X-A: 1", LENGTH, body=b"ok").replace(b"\r\n", b"\n"), (b"X-A", b"1")
    ),
    "two content types": passed(
        answer(b"Content-Type: text/plain", b"Content-Type: text/html", LENGTH, body=b"ok"),
        (b"Content-Type", b"text/plain"),
        (b"Content-Type", b"text/html"),
    ),
    "a field as long as may be": passed(
        answer(b"X-A: " + b"x" * (MAX_FIELD - 10), LENGTH, body=b"ok"),
        (b"X-A", b"x" * (MAX_FIELD - 10)),
    ),
    "a field that is too long": unusable(
        answer(b"X-A: " + b"x" * (MAX_FIELD + 10), LENGTH, body=b"ok")
    ),
    "many fields": passed(answer(*[b"a: b"] * 255, LENGTH, body=b"ok"), (b"a", b"b")),
    "too many fields": unusable(answer(*[b"a: b"] * 2000, LENGTH, body=b"ok")),
    "a head that is too long": unusable(
        answer(*[b"X-A: " + b"x" * 60_000] * 3, LENGTH, body=b"ok")
    ),
    "our own fields, and hop-by-hop ones": passed(
        answer(
            *(b"Connection: X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=99", b"Upgrade: h2c"),
            *(b"Proxy-Connection: close", b"X-Kept: 1", LENGTH),
            body=b"ok",
        ),
        (b"X-Kept", b"1"),
        dropped=[b"X-Hop", b"Upgrade", b"Proxy-Connection"],
    ),
    "a redirect is for the caller": Row(
        answer(
            b"Location: http://127.0.0.1:9/elsewhere",
            LENGTH,
            body=b"ok",
            line=b"HTTP/1.1 307 Temporary Redirect",
        ),
        307,
        b"ok",
        [(b"Location", b"http://127.0.0.1:9/elsewhere")],
    ),
    "a coding nobody undoes": passed(
        answer(b"Content-Encoding: gzip", LENGTH, body=b"ok"), (b"Content-Encoding", b"gzip")
    ),
}

TABLES = {"framing": FRAMING, "status lines": STATUS_LINES, "fields": FIELDS}
