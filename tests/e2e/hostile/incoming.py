"""Requests that try to be read two ways, to exhaust, or to slip past: one row each.

`status` is that of each answer. `seen` are the request lines that reached the API: all of them, in
order. A request whose end could be disputed also closes the connection, so that nothing behind it
is ever read as a request.

RFC 9112 (syntax, framing), RFC 9110 (fields), RFC 3986 (targets); CWE-444 (request smuggling).
"""

from dataclasses import dataclass

SECRET = b"planted-bearer-token"
"""In the rows' Authorization fields, and wherever a refusal might repeat what it was sent."""
USERS = b"/api/v2/users/me"  # forwarded at once
STOPPED = (
    *(b"connection", b"upgrade", b"http2-settings", b"expect", b"te", b"trailer"),
    *(b"transfer-encoding", b"forwarded", b"x-forwarded-host", b"x-forwarded-uri"),
)
"""Fields that never reach the API, whatever the row."""
MAX_BODY = 1000
MAX_HEADER = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """What is sent, what is answered, what the API saw."""

    sent: bytes
    status: int
    seen: tuple[bytes, ...] = ()
    closes: bool = False


def head(line: bytes, *fields: bytes) -> bytes:
    """Return a head with Host and Authorization, then `fields`."""
    mine = (b"Host: proxy.example", b"Authorization: Bearer " + SECRET)
    return b"\r\n".join((line, *mine, *fields, b"", b""))


def get(target: bytes = USERS, *fields: bytes) -> bytes:
    return head(b"GET " + target + b" HTTP/1.1", *fields)


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return head(b"POST " + USERS + b" HTTP/1.1", *fields) + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def line(method: bytes, target: bytes = USERS) -> bytes:
    """Return a request line as the API must have seen it."""
    return method + b" " + target + b" HTTP/1.1"


def refused(sent: bytes, status: int = 400) -> Row:
    """Return the row of a request that is refused and of which the API hears nothing."""
    return Row(sent, status, closes=True)


def declined(sent: bytes, status: int) -> Row:
    """Return the row of a request that is understood, and still not for the API."""
    return Row(sent, status)


INNER = b"GET /api/v2/smuggled HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\n\r\n"
"""What would be a request of its own if the one before it ended sooner than it says."""
SEEN_GET = (line(b"GET"),)
SEEN_POST = (line(b"POST"),)

FRAMING = {
    # RFC 9112 section 6.1: never both, and chunked is the only coding, once.
    "length and chunked": refused(
        post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + INNER)
    ),
    "chunked and length": refused(
        post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n" + INNER)
    ),
    "two lengths that differ": refused(
        post(b"Content-Length: 0", b"Content-Length: 5", body=b"hello")
    ),
    "two lengths that agree": refused(
        post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello")
    ),
    "a list of equal lengths": refused(post(b"Content-Length: 5,5", body=b"hello")),
    "a list of other lengths": refused(post(b"Content-Length: 5, 6", body=b"hello!")),
    "a signed length": refused(post(b"Content-Length: +5", body=b"hello")),
    "a negative length": refused(post(b"Content-Length: -5", body=b"hello")),
    "a hexadecimal length": refused(post(b"Content-Length: 0x5", body=b"hello")),
    "a length with an underscore": refused(post(b"Content-Length: 1_0", body=b"helloworld")),
    "a length in other digits": refused(
        post("Content-Length: \N{ARABIC-INDIC DIGIT FIVE}".encode(), body=b"hello")
    ),
    "a length with a space inside": refused(post(b"Content-Length: 1 0", body=b"helloworld")),
    "an empty length": refused(post(b"Content-Length:", body=INNER)),
    "a length beyond 64 bits": refused(post(b"Content-Length: 18446744073709551621", body=INNER)),
    "a space before the colon of the length": refused(post(b"Content-Length : 5", body=b"hello")),
    "chunked before HTTP/1.1": refused(
        chunked(b"2\r\nok\r\n0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    ),
    "chunked twice": refused(post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")),
    "chunked in two fields": refused(
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    ),
    "another coding before chunked": refused(
        post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")
    ),
    "chunked not last": refused(post(b"Transfer-Encoding: chunked, identity", body=INNER)),
    "identity": refused(post(b"Transfer-Encoding: identity", b"Content-Length: 0")),
    "an empty coding with a length": refused(
        post(b"Transfer-Encoding:", b"Content-Length: 5", body=b"hello")
    ),
    "a coding with a prefix": refused(post(b"Transfer-Encoding: xchunked", body=INNER)),
    "a coding after a vertical tab": refused(
        post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")
    ),
    "a quoted coding": refused(post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n")),
    "a space before the colon of the coding": refused(
        post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n")
    ),
    "a coding in HTTP/1.0": refused(
        head(b"POST " + USERS + b" HTTP/1.0", b"Transfer-Encoding: chunked", b"Content-Length: 0")
        + b"0\r\n\r\n"
    ),
    "chunked in any case": Row(
        post(b"transfer-ENCODING: Chunked", body=b"2\r\nok\r\n0\r\n\r\n"), 200, SEEN_POST
    ),
    "a length with leading zeros": Row(post(b"Content-Length: 0002", body=b"ok"), 200, SEEN_POST),
}

CHUNKS = {
    # RFC 9112 section 7.1. A chunk is a size in hex, its extension, CRLF, the data, CRLF.
    "a size that is no number": refused(chunked(b"zz\r\nhello\r\n0\r\n\r\n")),
    "a size with a sign": refused(chunked(b"+5\r\nhello\r\n0\r\n\r\n")),
    "a negative size": refused(chunked(b"-5\r\nhello\r\n0\r\n\r\n")),
    "a size with a prefix": refused(chunked(b"0x5\r\nhello\r\n0\r\n\r\n")),
    "a size with an underscore": refused(chunked(b"0_5\r\nhello\r\n0\r\n\r\n")),
    "a size after a space": refused(chunked(b" 5\r\nhello\r\n0\r\n\r\n")),
    "a size beyond 64 bits": refused(chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n")),
    "an empty size": refused(chunked(b"\r\nhello\r\n0\r\n\r\n")),
    "a bare LF after the size": refused(chunked(b"5\nhello\r\n0\r\n\r\n")),
    "a bare CR after the size": refused(chunked(b"5\rhello\r\n0\r\n\r\n")),
    "a bare LF in an extension": refused(chunked(b"5;a\nhello\r\n0\r\n\r\n")),
    "more data than the size": refused(chunked(b"3\r\nhello\r\n0\r\n\r\n")),
    "a bare LF after the data": refused(chunked(b"5\r\nhello\n0\r\n\r\n")),
    "an extension of 64 KiB": Row(
        chunked(b"2;" + b"x" * 65_536 + b"\r\nok\r\n0\r\n\r\n"), 200, SEEN_POST
    ),
    "a small extension": Row(chunked(b"2;a=b\r\nok\r\n0\r\n\r\n"), 200, SEEN_POST),
    "trailers that look like fields": Row(
        chunked(b"2\r\nok\r\n0\r\nAuthorization: Bearer trailer\r\nHost: evil.example\r\n\r\n"),
        200,
        SEEN_POST,
    ),
    "a trailer that looks like a length": refused(
        chunked(b"2\r\nok\r\n0\r\nContent-Length: 99\r\n\r\n")
    ),
    "one-byte chunks": Row(chunked(b"1\r\nx\r\n" * MAX_BODY + b"0\r\n\r\n"), 200, SEEN_POST),
}

SYNTAX = {
    # RFC 9112 sections 2 to 5.
    "a bare LF after the request line": refused(get().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n")),
    "a bare LF after a field": refused(get(USERS, b"X-A: 1").replace(b"1\r\n\r\n", b"1\n\r\n")),
    "a bare LF as the empty line": refused(get(USERS, b"X-A: 1").removesuffix(b"\r\n") + b"\n"),
    "a bare CR in a value": refused(get(USERS, b"X-A: a\rX-B: b")),
    "a bare CR after the request line": refused(get().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r")),
    "a folded field": refused(get(USERS, b"X-A: a\r\n b")),
    "a folded first field": refused(
        b"GET " + USERS + b" HTTP/1.1\r\n Host: a\r\nHost: b\r\nAuthorization: Bearer a\r\n\r\n"
    ),
    "a space before the colon": refused(get(USERS, b"X-A : a")),
    "a tab before the colon": refused(get(USERS, b"X-A\t: a")),
    "a space in a name": refused(get(USERS, b"X A: a")),
    "no colon": refused(get(USERS, b"X-A")),
    "no name": refused(get(USERS, b": a")),
    "a NUL in a value": refused(get(USERS, b"X-A: a\0b")),
    "a NUL in a name": refused(get(USERS, b"X\0A: a")),
    "a control character in a value": refused(get(USERS, b"X-A: a\x01b")),
    "a DEL in a value": refused(get(USERS, b"X-A: a\x7fb")),
    "a name beyond ASCII": refused(get(USERS, b"X-\xc3\xa4: a")),
    "a name with a brace": refused(get(USERS, b"X{A}: a")),
    "a request line without a version": refused(b"GET " + USERS + b"\r\n\r\n"),
    "an older version": refused(head(b"GET " + USERS + b" HTTP/0.9")),
    "a newer version": refused(head(b"GET " + USERS + b" HTTP/2.0")),
    "a version with more digits": refused(head(b"GET " + USERS + b" HTTP/1.10")),
    "a version in lower case": refused(head(b"GET " + USERS + b" http/1.1")),
    "another protocol": refused(head(b"GET " + USERS + b" ICE/1.1")),
    "the preface of HTTP/2": refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS on a plain port": refused(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\0" * 32),
    "a method in lower case": refused(head(b"get " + USERS + b" HTTP/1.1")),
    "a method with a slash": refused(head(b"G/T " + USERS + b" HTTP/1.1")),
    "two spaces in the request line": Row(head(b"GET  " + USERS + b" HTTP/1.1"), 200, SEEN_GET),
    "a tab in the request line": refused(head(b"GET\t" + USERS + b" HTTP/1.1")),
    "an empty line before it": Row(b"\r\n" + get(), 200, SEEN_GET),
    "two requests at once": Row(
        get() + get(USERS + b"/2"), 200, (line(b"GET"), line(b"GET", USERS + b"/2"))
    ),
    "a whole request in a body": Row(
        post(b"Content-Length: %d" % len(INNER), body=INNER), 200, SEEN_POST
    ),
    "a body with GET": Row(get(USERS, b"Content-Length: 2") + b"ok", 200, SEEN_GET),
}

FIELDS = {
    # RFC 9110 sections 7.2 (Host), 10.1.1 (Expect); RFC 9112 section 3.2.
    "no host": refused(get().replace(b"Host: proxy.example\r\n", b"")),
    "an empty host": refused(get().replace(b"proxy.example", b"")),
    "two hosts": refused(get(USERS, b"Host: evil.example")),
    "a list of hosts": refused(get().replace(b"proxy.example", b"a, b")),
    "a host with a user": refused(get().replace(b"proxy.example", b"user@proxy.example")),
    "a host with a path": refused(get().replace(b"proxy.example", b"proxy.example/path")),
    "a host with a space": refused(get().replace(b"proxy.example", b"proxy example")),
    "two credentials": refused(get(USERS, b"Authorization: Bearer b")),
    "two credentials in one field": declined(get().replace(SECRET, SECRET + b", Bearer b"), 401),
    "an unknown expectation": refused(post(b"Expect: the-unexpected", b"Content-Length: 0"), 417),
    "another host": Row(get().replace(b"proxy.example", b"evil.example"), 200, SEEN_GET),
    "a host forwarded": Row(
        get(USERS, b"X-Forwarded-Host: evil.example", b"Forwarded: host=evil.example"),
        200,
        SEEN_GET,
    ),
    "a path forwarded": Row(
        get(USERS, b"X-Forwarded-Uri: /evil", b"X-Original-URL: /evil", b"X-Rewrite-URL: /evil"),
        200,
        SEEN_GET,
    ),
    "a method forwarded": Row(get(USERS, b"X-HTTP-Method-Override: DELETE"), 200, SEEN_GET),
    "an upgrade to WebSocket": Row(
        get(
            USERS,
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        200,
        SEEN_GET,
    ),
    "an upgrade to HTTP/2": Row(
        get(
            USERS,
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ),
        200,
        SEEN_GET,
    ),
    "an upgrade with a body": Row(
        post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 2", body=b"ok"),
        200,
        SEEN_POST,
    ),
    "Connection: close": Row(get(USERS, b"Connection: close"), 200, SEEN_GET),
}

TARGETS = {
    # RFC 9112 section 3.2, RFC 3986 section 3. One authority, and it is configured.
    "an authority with two slashes": refused(get(b"//evil.example/api/v2/users/me")),
    "three slashes": refused(get(b"///evil.example/api/v2/users/me")),
    "a backslash": refused(get(b"/\\evil.example/api/v2/users/me")),
    "an authority by user information": refused(get(b"@evil.example/api/v2/users/me")),
    "a bare name": refused(get(b"api/v2/users/me")),
    "an absolute URL with a user": refused(get(b"http://user@evil.example" + USERS)),
    "an absolute URL without a host": refused(get(b"http:///api/v2/users/me")),
    "an absolute URL of another scheme": refused(get(b"ftp://evil.example" + USERS)),
    "an absolute URL of a file": refused(get(b"file:///etc/passwd")),
    "a fragment": refused(get(USERS + b"#x")),
    "dot segments": refused(get(b"/api/v2/../v2/users/me")),
    "encoded dot segments": refused(get(b"/api/v2/%2e%2E/v2/users/me")),
    "half-encoded dot segments": refused(get(b"/api/v2/.%2e/v2/users/me")),
    "dot segments with a parameter": refused(get(b"/api/v2/..;a=b/v2/users/me")),
    "an encoded slash": refused(get(b"/api/v2/users%2Fme")),
    "an encoded backslash": refused(get(b"/api/v2/users%5cme")),
    "an encoded NUL": refused(get(USERS + b"%00")),
    "a broken escape": refused(get(USERS + b"%zz")),
    "an escape cut short": refused(get(USERS + b"%4")),
    "a byte beyond ASCII": refused(get(USERS + b"/\xc3\xa9")),
    "an overlong slash": refused(get(USERS + b"%c0%af")),
    "an absolute URL of another host": Row(get(b"http://evil.example" + USERS), 200, SEEN_GET),
    "an absolute URL of the root": declined(get(b"http://evil.example/"), 404),
    "an absolute URL in the query": Row(
        get(USERS + b"?u=http://evil.example/"),
        200,
        (line(b"GET", USERS + b"?u=http://evil.example/"),),
    ),
    "a query of odd bytes": Row(
        get(USERS + b"?x=%20+%2B&y=a%2Cb;c&&"),
        200,
        (line(b"GET", USERS + b"?x=%20+%2B&y=a%2Cb;c&&"),),
    ),
    "a tunnel": refused(head(b"CONNECT evil.example:443 HTTP/1.1"), 405),
    "a tunnel to a path": refused(head(b"CONNECT " + USERS + b" HTTP/1.1"), 405),
    "an echo": refused(head(b"TRACE " + USERS + b" HTTP/1.1"), 405),
    "options of the server": refused(head(b"OPTIONS * HTTP/1.1")),
}

SIZES = {
    # Sizes have a bound before anything is done with what is sent (CWE-770).
    "a body one byte too long": refused(
        post(b"Content-Length: %d" % (MAX_BODY + 1), body=b"x" * (MAX_BODY + 1)), 413
    ),
    "a body announced too long": refused(post(b"Content-Length: 999999999999"), 413),
    "a body announced too long, asking first": refused(
        post(b"Expect: 100-continue", b"Content-Length: %d" % (MAX_BODY + 1)), 413
    ),
    "chunks that add up": refused(
        chunked((b"1f4\r\n" + b"x" * 500 + b"\r\n") * 3 + b"0\r\n\r\n"), 413
    ),
    "a body of full size": Row(
        post(b"Content-Length: %d" % MAX_BODY, body=b"x" * MAX_BODY), 200, SEEN_POST
    ),
    "a long request line": refused(get(USERS + b"?" + b"x" * MAX_HEADER), 431),
    "a long value": refused(get(USERS, b"X-A: " + b"x" * MAX_HEADER), 431),
    "a long name": refused(get(USERS, b"X" * MAX_HEADER + b": a"), 431),
    "long in all, each field short": refused(get(USERS, *[b"X-A: " + b"x" * 400] * 12), 431),
    "a head without an end": refused(get(USERS, *[b"X-A: " + b"x" * 400] * 12)[:-2], 431),
    "too many fields": refused(get(USERS, *[b"a: b"] * 200), 400),
}

TABLES = {
    "framing": FRAMING,
    "chunks": CHUNKS,
    "syntax": SYNTAX,
    "fields": FIELDS,
    "targets": TARGETS,
    "sizes": SIZES,
}
