"""Bytes unchanged, both ways: raw requests in, raw requests recorded behind the proxy.

What may differ is named here and nowhere else: hop-by-hop fields (RFC 9110 section 7.6.1), framing
(RFC 9112 section 6), a bare `?`, and the fields a gateway adds. Answers are read by h11.
"""

import asyncio
import gzip
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.proxy import TOKEN, proxy_for
from tests.kit.upstream import HalfBody, RawUpstream, RecordedRequest, Reply, Step

EXPORTS = "/api/v2/recordings/exports"  # paced
USERS = "/api/v2/users/me"  # forwarded at once
FAST = {"interval": 0.01}
OK = Reply()
BIG = bytes(range(256)) * 1954  # 500,224 bytes, below the default limit of a body
BROTLI = bytes.fromhex("8b0280627974657303")  # the bytes matter, not what they mean
ADDED = {b"via", b"server-timing", b"x-request-id"}
STAYS = {
    (b"Connection", b"keep-alive"),
    (b"Keep-Alive", b"timeout=10"),
}  # what the proxy says itself
Field = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Trip:
    """One request as the API saw it, and its answer as the caller did."""

    sent: RecordedRequest
    answer: Response


def request(  # noqa: PLR0913 -- the parts of a request, all of them optional
    method: str = "GET",
    target: str = USERS,
    fields: Sequence[Field] = (),
    body: bytes = b"",
    *,
    chunked: bool = False,
    version: str = "1.1",
) -> bytes:
    """Bytes of a request with Host and Authorization, then `fields`, then framing if needed."""
    head = [f"{method} {target} HTTP/{version}", "Host: proxy.example"]
    head.append(f"Authorization: Bearer {TOKEN}")
    head += [f"{name}: {value}" for name, value in fields]
    if chunked:
        head.append("Transfer-Encoding: chunked")
        parts = [body[at : at + 60_000] for at in range(0, len(body), 60_000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))
    elif body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


async def trip(raw: bytes, step: Step = OK, **sections: Mapping[str, Any] | list[Any]) -> Trip:
    """Send one request through a proxy of its own; the API got it exactly once."""
    sections.setdefault("pacing", FAST)
    async with (
        RawUpstream(default=step) as upstream,
        proxy_for(upstream.url, **sections) as proxy,
    ):
        answer = await exchange(HOST, port_of(proxy.url), raw)
    assert len(upstream.requests) == 1
    method = raw.partition(b" ")[0].decode()
    return Trip(upstream.requests[0], parse_response(answer, method))


def answered(*fields: Field, body: bytes = b"", status: str = "200 OK") -> Reply:
    """An answer with exactly these fields, in this order and spelling."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields)]
    return Reply(raw="\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def passed_on(answer: Response) -> list[tuple[bytes, bytes]]:
    """The fields of an answer that are not the proxy's own."""
    return [
        (name, value)
        for name, value in answer.headers
        if name.lower() not in ADDED and (name, value) not in STAYS
    ]


# The target


@pytest.mark.parametrize(
    "target",
    [
        f"{EXPORTS}?x=%20+%2B&y=a%2Cb;c&&",
        "/api/v2/recordings/%41%62c",
        f"{EXPORTS}/%7Ea;v=1/",
        f"{USERS}?",
        f"{USERS}?a=b?c=/../d%zz&e=\\",
        f"{EXPORTS}/{'x' * 4000}",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_target_is_forwarded_as_it_was_written(method: str, target: str) -> None:
    sent = (await trip(request(method, target))).sent
    assert sent.method == method.encode()
    assert sent.target == target.removesuffix("?").encode()


@pytest.mark.parametrize("target", [f"{USERS}?%41", f"http://evil.example:1{USERS}?%41"])
async def test_the_host_sent_is_the_upstreams_own(target: str) -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        await exchange(HOST, port_of(proxy.url), request("GET", target))
    (sent,) = upstream.requests
    assert sent.target == f"{USERS}?%41".encode()
    assert sent.values("Host") == [f"127.0.0.1:{upstream.port}".encode()]


# Bodies


@pytest.mark.parametrize("target", [EXPORTS, USERS])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([("Content-Type", "application/json")], b'{ "channel":"voice" }\n'),
        ([("Content-Encoding", "gzip")], gzip.compress(b'{"channel": "voice"}')),
        ([("Content-Encoding", "gzip")], b"not gzip at all"),
        ([("Content-Encoding", "br")], BROTLI),
        ([], BIG),
    ],
    ids=["json", "gzip", "broken-gzip", "br", "500kB"],
)
async def test_a_request_body_is_forwarded_with_a_length_and_otherwise_as_it_came(
    target: str, fields: list[Field], body: bytes, *, chunked: bool
) -> None:
    sent = (await trip(request("POST", target, fields, body, chunked=chunked))).sent
    assert sent.body == body
    assert sent.values("Content-Length") == [str(len(body)).encode()]
    assert sent.values("Transfer-Encoding") == []
    for name, value in fields:
        assert sent.values(name) == [value.encode()]


@pytest.mark.parametrize("target", [EXPORTS, USERS])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([("Content-Type", "application/json")], b'{ "id" : 1 }'),
        ([("Content-Encoding", "gzip")], gzip.compress(b'{"id": 1}')),
        ([("Content-Encoding", "br")], BROTLI),
        ([], BIG),
        ([], b""),
    ],
    ids=["json", "gzip", "br", "500kB", "empty"],
)
async def test_an_answers_body_comes_back_as_the_api_sent_it(
    target: str, fields: list[Field], body: bytes, *, chunked: bool
) -> None:
    accepts = [("Accept-Encoding", "gzip, br")]
    step = Reply(200, fields, body, chunked=chunked)
    answer = (await trip(request("GET", target, accepts), step)).answer
    assert (answer.status, answer.body, answer.complete) == (200, body, True)
    assert answer.values("Content-Length") == ([] if chunked else [str(len(body)).encode()])
    for name, value in fields:
        assert answer.values(name) == [value.encode()]


async def test_the_status_and_its_phrase_are_the_apis() -> None:
    reply = answered(("Content-Length", "0"), status="299 Quite so")
    answer = (await trip(request(), reply)).answer
    assert (answer.status, answer.reason) == (299, b"Quite so")


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_that_dies_is_cut_short_and_not_ended(*, chunked: bool) -> None:
    answer = (await trip(request(), HalfBody(b"x" * 1000, chunked=chunked))).answer
    assert (answer.status, answer.complete) == (200, False)
    assert answer.body in (b"", b"x" * 500)


async def test_a_body_without_a_length_ends_a_connection_of_http_1_0() -> None:
    """RFC 9112 section 6.3: there are no chunks there, so the close is the end."""
    reply = Reply(200, body=b"whole", chunked=True)
    old = request(fields=[("Connection", "keep-alive")]).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with (
        RawUpstream(default=reply) as upstream,
        proxy_for(upstream.url) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as caller,
    ):
        await caller.send(old)
        raw = await caller.read_to_close()
    assert b"Connection: close\r\n" in raw
    assert raw.endswith(b"\r\n\r\nwhole")


@pytest.mark.parametrize(
    ("target", "status"), [("/api/v2/oauth/clients", 403), ("/nowhere", 404), (USERS, 401)]
)
async def test_a_body_that_was_not_read_is_never_taken_for_a_request(
    target: str, status: int
) -> None:
    """The caller waits to be told to go on, is refused, and sends the body nevertheless."""
    inner = request("GET", USERS)
    fields = [("Expect", "100-continue"), ("Content-Length", str(len(inner)))]
    head = b"\r\n".join(
        line
        for line in request("POST", target, fields).split(b"\r\n")
        if status != 401 or not line.startswith(b"Authorization")
    )
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        async with await RawConnection.open(HOST, port_of(proxy.url)) as caller:
            await caller.send(head)
            answer = await caller.read_response("POST")
            await caller.send(inner)
            assert await caller.read_to_close() == b""
        assert upstream.requests == []
    assert (answer.status, answer.values("Connection")) == (status, [b"close"])


# Fields


@pytest.mark.parametrize("target", [EXPORTS, USERS])
async def test_request_fields_keep_order_spelling_and_duplicates(target: str) -> None:
    fields = [
        ("x-tag", "1"),
        ("ACCEPT", "text/plain"),
        ("X-Tag", "2"),
        ("accept", "text/html;q=0.5"),
        ("cookie", "a=1"),
        ("Cookie", "b=2"),
        ("X-Tag", "2"),
        ("x-empty", ""),
        ("X-Spaces", "a \t b"),
        ("user-AGENT", "sdk/1"),
    ]
    sent = (await trip(request("POST", target, fields, b"{}"))).sent
    names = {name.lower().encode() for name, _ in fields}
    assert [field for field in sent.headers if field[0].lower() in names] == [
        (name.encode(), value.encode()) for name, value in fields
    ]


async def test_answer_fields_keep_order_spelling_and_duplicates() -> None:
    fields = [
        ("content-TYPE", "text/plain; charset=x"),
        ("X-Tag", "1"),
        ("set-cookie", "a=1; Path=/; HttpOnly"),
        ("x-tag", "2"),
        ("Set-Cookie", "b=2; Secure"),
        ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("etag", 'W/"x"'),
        ("Server", "api/7"),
        ("inin-ratelimit-count", "3"),
        ("content-length", "2"),
    ]
    answer = (await trip(request(), answered(*fields, body=b"ok"))).answer
    assert passed_on(answer) == [(name.encode(), value.encode()) for name, value in fields]


async def test_a_field_beyond_ascii_passes_as_its_bytes_do() -> None:
    reply = answered(("X-Name", "\xc3\xa9"), ("Content-Length", "0"))  # é in UTF-8
    result = await trip(request("GET", USERS, [("X-Name", "\xc3\xbc")]), reply)
    assert result.sent.values("X-Name") == [b"\xc3\xbc"]
    assert result.answer.values("X-Name") == [b"\xc3\xa9"]


async def test_a_field_that_is_no_utf_8_is_sent_as_its_bytes_are() -> None:
    """RFC 9110 section 5.5: obs-text; old clients write Latin-1."""
    result = await trip(request("GET", USERS, [("X-Name", "M\xfcller\x80\xff")]))
    assert result.sent.values("X-Name") == [b"M\xfcller\x80\xff"]


HOP_BY_HOP = [
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "X-Checksum"),
    ("Upgrade", "h2c"),
]


@pytest.mark.parametrize("target", [EXPORTS, USERS])
async def test_hop_by_hop_and_nominated_request_fields_stop_here(target: str) -> None:
    fields = [
        *HOP_BY_HOP,
        ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
        ("Connection", "keep-alive, X-Secret-Hop"),
        ("connection", " x-other-hop ,upgrade, HTTP2-Settings"),
        ("X-Secret-Hop", "1"),
        ("X-OTHER-hop", "2"),
        ("X-Kept", "3"),
    ]
    sent = (await trip(request("GET", target, fields))).sent
    names = [name for name, _ in sent.headers]
    assert names == [b"Host", b"Authorization", b"X-Kept", b"Via"]


async def test_fields_that_speak_of_or_to_another_hop_stop_here() -> None:
    fields = [
        ("Forwarded", "for=192.0.2.1;host=evil.example"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("Proxy-Authorization", "Basic c2VjcmV0"),
        ("X_Forwarded_For", "192.0.2.1"),
    ]
    sent = (await trip(request("GET", USERS, fields))).sent
    assert [name for name, _ in sent.headers] == [b"Host", b"Authorization", b"Via"]


async def test_hop_by_hop_and_nominated_answer_fields_stop_here() -> None:
    reply = answered(
        *HOP_BY_HOP,
        ("Connection", "keep-alive, X-Secret-Hop"),
        ("X-Secret-Hop", "1"),
        ("X-Kept", "2"),
        ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("Content-Length", "0"),
    )
    answer = (await trip(request(), reply)).answer
    assert [name for name, _ in passed_on(answer)] == [b"X-Kept", b"Date", b"Content-Length"]


async def test_naming_our_fields_in_connection_does_not_remove_them() -> None:
    names = "Via, X-Request-Id, Server-Timing, Authorization, Host, Content-Length"
    reply = answered(("Connection", names), ("Content-Length", "2"), body=b"ok")
    result = await trip(request("POST", USERS, [("Connection", names)], b"body"), reply)
    assert len(result.sent.values("Via")) == 1
    assert len(result.sent.values("Host")) == 1
    assert result.sent.body == b"body"
    # A caller may have its own fields dropped (RFC 9110 section 7.6.1); nobody is let in by that.
    assert result.sent.values("Authorization") == []
    assert result.answer.body == b"ok"
    assert {name.lower() for name, _ in result.answer.headers} >= ADDED


@pytest.mark.parametrize("target", [EXPORTS, USERS])
async def test_no_request_field_is_invented(target: str) -> None:
    sent = (await trip(request("GET", target))).sent
    assert [name for name, _ in sent.headers] == [b"Host", b"Authorization", b"Via"]
    sent = (await trip(request("POST", target, (), b"x"))).sent
    assert sorted(name for name, _ in sent.headers) == [
        b"Authorization",
        b"Content-Length",
        b"Host",
        b"Via",
    ]


async def test_no_answer_field_is_invented_but_the_date_a_gateway_owes() -> None:
    """RFC 9110 section 6.6.1: a recipient with a clock adds the Date that is missing."""
    answer = (await trip(request(), answered(("Content-Length", "4"), body=b"data"))).answer
    invented = {name.lower() for name, _ in answer.headers if name not in dict(STAYS)}
    assert invented == ADDED | {b"content-length", b"date"}
    assert answer.body == b"data"


# Redirects and cookies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", [EXPORTS, USERS])
async def test_a_redirect_is_passed_on_and_not_followed(target: str, status: int) -> None:
    async with RawUpstream() as elsewhere:
        location = f"{elsewhere.url}/api/v2/a%20b"
        reply = Reply(status, [("Location", location)], b"moved")
        answer = (await trip(request("POST", target, (), b"{}"), reply)).answer
        assert (answer.status, answer.body) == (status, b"moved")
        assert answer.values("Location") == [location.encode()]
        assert elsewhere.connections == 0


async def test_cookies_are_passed_on_and_never_kept() -> None:
    cookies = [("Set-Cookie", "session=one; Path=/"), ("Set-Cookie", "other=two")]
    async with (
        RawUpstream(default=Reply(200, cookies)) as upstream,
        # By name, for a jar would not take cookies from an address anyway.
        proxy_for(f"http://localhost:{upstream.port}") as proxy,
    ):
        first = parse_response(await exchange(HOST, port_of(proxy.url), request()))
        await exchange(HOST, port_of(proxy.url), request().replace(TOKEN.encode(), b"another"))
        await exchange(HOST, port_of(proxy.url), request("GET", USERS, [("Cookie", "mine=3")]))
    assert first.values("Set-Cookie") == [b"session=one; Path=/", b"other=two"]
    sent = [recorded.values("Cookie") for recorded in upstream.requests]
    assert sent == [[], [], [b"mine=3"]]


# Framing


async def test_answers_without_a_body_leave_the_connection_in_step() -> None:
    """Each answer is read by h11, which would take stray bytes for the next one."""
    script = [
        Reply(200, [("Content-Length", "10"), ("X-N", "1")]),
        Reply(204, [("X-N", "2")]),
        Reply(304, [("Content-Length", "10"), ("ETag", '"e"'), ("X-N", "3")]),
        Reply(200, [("X-N", "4")]),
        Reply(200, [("X-N", "5")], b"at last", chunked=True),
    ]
    methods = ["HEAD", "POST", "GET", "GET", "GET"]
    answers = []
    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as connection,
    ):
        for method in methods:
            await connection.send(request(method))
            answers.append(await connection.read_response(method))
    assert [answer.values("X-N") for answer in answers] == [[b"1"], [b"2"], [b"3"], [b"4"], [b"5"]]
    assert [answer.status for answer in answers] == [200, 204, 304, 200, 200]
    assert [answer.body for answer in answers] == [b"", b"", b"", b"", b"at last"]
    assert answers[0].values("Content-Length") == [b"10"]  # what a GET would bring
    assert answers[1].values("Content-Length") == []  # RFC 9110 section 8.6
    assert all(answer.complete and not answer.rest for answer in answers)
    assert all(answer.values("Connection") == [b"keep-alive"] for answer in answers)


async def test_interim_answers_do_not_disturb_the_final_one_nor_the_next() -> None:
    interim = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
    )
    final = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"
    script = [Reply(raw=interim + final), Reply(202, body=b"next")]
    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as connection,
    ):
        await connection.send(request("POST", USERS, (), b"{}"))
        first = await connection.read_response("POST")
        await connection.send(request())
        second = await connection.read_response()
    assert (first.status, first.body) == (201, b"ok")
    assert (second.status, second.body) == (202, b"next")


async def test_a_caller_that_waits_for_100_gets_it_from_the_proxy_alone() -> None:
    body = b'{"channel": "voice"}'
    head = request("POST", USERS, [("Expect", "100-continue")], body).removesuffix(body)
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        reader, writer = await asyncio.open_connection(HOST, port_of(proxy.url))
        writer.write(head)
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert upstream.connections == 0
            writer.write(body)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.write(request())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
        await writer.wait_closed()
    expecting, following = upstream.requests
    assert (expecting.body, expecting.values("Expect")) == (body, [])
    assert (following.method, following.connection) == (b"GET", expecting.connection)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_caller_of_http_1_0_gets_no_chunks(*, chunked: bool) -> None:
    step = Reply(200, (), b"as plain as it gets", chunked=chunked)
    result = await trip(request("GET", EXPORTS, version="1.0"), step)
    assert (result.answer.status, result.answer.body) == (200, b"as plain as it gets")
    assert result.answer.complete
    assert result.answer.values("Transfer-Encoding") == []
    assert result.sent.values("Via")[0].startswith(b"1.0 ")


async def test_a_caller_of_http_1_0_need_not_name_a_host() -> None:
    raw = request(version="1.0").replace(b"Host: proxy.example\r\n", b"")
    assert (await trip(raw)).answer.status == 200


# What the proxy adds


async def test_a_callers_request_id_is_used_and_forwarded() -> None:
    result = await trip(request("GET", USERS, [("X-Request-Id", "A-z.0_9")]))
    assert result.sent.values("X-Request-Id") == [b"A-z.0_9"]
    assert result.answer.values("X-Request-Id") == [b"A-z.0_9"]


@pytest.mark.parametrize(
    ("own", "is_used"),
    [("x" * 64, True), ("x" * 65, False), ("", False), ("a b", False), ("a,b", False)],
)
async def test_a_request_id_that_could_do_harm_is_replaced(own: str, *, is_used: bool) -> None:
    answer = (await trip(request("GET", USERS, [("X-Request-Id", own)]))).answer
    (value,) = answer.values("X-Request-Id")
    assert (value == own.encode()) is is_used
    assert len(value) >= 16


async def test_an_id_that_the_api_gives_is_left_as_it_is() -> None:
    answer = (await trip(request(), Reply(200, [("x-request-id", "the api's")]))).answer
    assert answer.values("X-Request-Id") == [b"the api's"]


async def test_every_request_without_an_id_gets_one_of_its_own() -> None:
    ids = [(await trip(request())).answer.values("X-Request-Id")[0] for _ in range(2)]
    assert ids[0] != ids[1]


async def test_via_grows_by_this_hop_in_both_directions() -> None:
    reply = Reply(200, [("Via", "1.1 edge")])
    result = await trip(request("GET", USERS, [("Via", "1.0 a"), ("via", "1.1 b")]), reply)
    (sent,) = result.sent.values("Via")
    pseudonym = sent.rpartition(b" ")[2]
    assert pseudonym.startswith(b"export-proxy")
    assert sent == b"1.0 a, 1.1 b, 1.1 " + pseudonym
    assert result.answer.values("Via") == [b"1.1 edge", b"1.1 " + pseudonym]


async def test_a_request_that_comes_round_is_refused_once() -> None:
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        await exchange(HOST, port_of(proxy.url), request())
        via = upstream.requests[0].values("Via")[0].decode()
        again = request("GET", USERS, [("Via", f"1.1 other, {via}")])
        answer = parse_response(await exchange(HOST, port_of(proxy.url), again))
    assert answer.status == 508
    assert len(upstream.requests) == 1


async def test_server_timing_says_where_the_time_went() -> None:
    """A wait in the queue, a hold of a second and a slow answer; the parts sum to the whole."""
    script = [Reply(429, [("Retry-After", "1")]), Reply(200, delay=0.2)]
    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": 1.2}) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as connection,
    ):
        begun = time.monotonic()
        await connection.send(request("POST", EXPORTS))
        answer = await connection.read_response("POST")
        elapsed = 1000 * (time.monotonic() - begun)
    (value,) = answer.values("Server-Timing")
    parts = dict(part.split(";dur=") for part in value.decode().split(", "))
    times = {name: float(part) for name, part in parts.items()}
    assert list(times) == ["queue", "hold", "token", "upstream"]
    assert times["token"] == 0
    assert times["upstream"] >= 200
    assert times["hold"] >= 900
    assert times["queue"] > 0
    # What the caller measures has the way to the proxy and back in it, too.
    assert elapsed - 800 < sum(times.values()) < elapsed + 1


async def test_the_apis_own_server_timing_stays() -> None:
    answer = (await trip(request(), Reply(200, [("Server-Timing", "db;dur=53")]))).answer
    first, ours = answer.values("Server-Timing")
    assert first == b"db;dur=53"
    assert ours.startswith(b"queue;dur=")


# Prefixes of a gateway setting


async def test_the_api_prefix_is_stripped() -> None:
    raw = request("POST", f"/gc{EXPORTS}?a=%41", (), b"{}")
    result = await trip(raw, listen={"port": 0, "api_prefix": "/gc"})
    assert (result.sent.target, result.answer.status) == (f"{EXPORTS}?a=%41".encode(), 200)


@pytest.mark.parametrize("target", [EXPORTS, f"/gcx{EXPORTS}", f"/GC{EXPORTS}", "/gc", "/"])
async def test_without_the_api_prefix_there_is_nothing(target: str) -> None:
    listen = {"port": 0, "api_prefix": "/gc"}
    async with RawUpstream() as upstream, proxy_for(upstream.url, listen=listen) as proxy:
        answer = parse_response(await exchange(HOST, port_of(proxy.url), request("GET", target)))
    assert (answer.status, upstream.connections) == (404, 0)


LOGIN = b"grant_type=client_credentials&client_id=a&client_secret=b%2B+c"


def token_call(target: str) -> bytes:
    form = "application/x-www-form-urlencoded"
    head = f"POST {target} HTTP/1.1\r\nHost: h\r\nContent-Type: {form}\r\nContent-Length: "
    return head.encode() + b"%d\r\n\r\n" % len(LOGIN) + LOGIN


async def test_the_login_prefix_is_stripped_and_the_call_otherwise_unchanged() -> None:
    reply = Reply(200, [("content-type", "application/json")], b'{"access_token": "t"}')
    listen = {"port": 0, "api_prefix": "/gc", "login_prefix": "/login"}
    result = await trip(token_call("/login/oauth/token?x=%41"), reply, listen=listen)
    assert result.sent.target == b"/oauth/token?x=%41"
    assert result.sent.body == LOGIN
    assert [name for name, _ in result.sent.headers if name.lower() != b"content-length"] == [
        b"Host",
        b"Content-Type",
        b"Via",
    ]
    assert result.answer.body == b'{"access_token": "t"}'
    assert result.answer.values("content-type") == [b"application/json"]


@pytest.mark.parametrize("target", ["/oauth/token", "/loginx/oauth/token", "/gc/oauth/token"])
async def test_without_the_login_prefix_there_is_no_token_endpoint(target: str) -> None:
    listen = {"port": 0, "api_prefix": "/gc", "login_prefix": "/login"}
    async with RawUpstream() as upstream, proxy_for(upstream.url, listen=listen) as proxy:
        answer = parse_response(await exchange(HOST, port_of(proxy.url), token_call(target)))
    assert (answer.status, upstream.connections) == (404, 0)
