"""The scripted upstream does each step, and keeps what it was sent."""

import asyncio

import pytest

from tests.kit.client import RawConnection, exchange, parse_response
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.upstream import (
    Garbage,
    HalfBody,
    Hang,
    RawUpstream,
    ReadThenClose,
    ReadThenReset,
    RecordedRequest,
    Reply,
    Step,
    free_port,
)

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED_BODY = b"2;x=y\r\nbo\r\n2\r\ndy\r\n0\r\nTrailer: t\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY


async def test_a_request_is_recorded_to_the_byte() -> None:
    head = (
        b"POST /x?q=%41&& HTTP/1.1\r\n"
        b"Host: h\r\nX-Odd:  two  \r\nx-odd:\r\nContent-Length: 4\r\n\r\n"
    )
    async with RawUpstream(clock=FakeClock(start=7)) as upstream:
        await exchange(HOST, upstream.port, head + b"body")
    assert upstream.requests == [
        RecordedRequest(
            head=head,
            method=b"POST",
            target=b"/x?q=%41&&",
            headers=(
                (b"Host", b"h"),
                (b"X-Odd", b"two"),
                (b"x-odd", b""),
                (b"Content-Length", b"4"),
            ),
            raw_body=b"body",
            body=b"body",
            is_complete=True,
            arrived_at=7,
            connection=1,
            number=1,
        )
    ]
    assert upstream.requests[0].values("X-ODD") == [b"two", b""]


async def test_a_chunked_body_is_kept_both_ways() -> None:
    async with RawUpstream() as upstream:
        await exchange(HOST, upstream.port, CHUNKED)
    assert upstream.requests[0].body == b"body"
    assert upstream.requests[0].raw_body == CHUNKED_BODY


@pytest.mark.parametrize(
    ("sent", "raw_body", "body"),
    [(POST[:-1], b"bod", b"bod"), (CHUNKED[: -len(CHUNKED_BODY) + 13], CHUNKED_BODY[:13], b"bo")],
)
async def test_a_body_cut_short_is_recorded_as_such(
    sent: bytes, raw_body: bytes, body: bytes
) -> None:
    async with RawUpstream() as upstream:
        assert await exchange(HOST, upstream.port, sent, half_close=True) == b""
        request = upstream.requests[0]
    assert (request.raw_body, request.body, request.is_complete) == (raw_body, body, False)


async def test_what_is_no_whole_head_is_stray() -> None:
    async with RawUpstream() as upstream:
        await exchange(HOST, upstream.port, GET[:-2], half_close=True)
    assert upstream.stray == [GET[:-2]]
    assert upstream.requests == []


async def test_steps_are_played_in_order_then_the_default() -> None:
    script = [Reply(201), Reply(429, [("Retry-After", "2")], b"slow")]
    async with RawUpstream(script, default=Reply(204)) as upstream:
        answers = [parse_response(await exchange(HOST, upstream.port, GET)) for _ in range(4)]
    assert [answer.status for answer in answers] == [201, 429, 204, 204]
    assert answers[1].headers == [(b"Retry-After", b"2"), (b"Content-Length", b"4")]
    assert answers[1].body == b"slow"


async def test_a_function_of_the_request_is_a_script_too() -> None:
    def script(request: RecordedRequest) -> Step:
        return Reply(body=request.method + request.target)

    async with RawUpstream(script) as upstream:
        assert parse_response(await exchange(HOST, upstream.port, GET)).body == b"GET/a"


async def test_a_script_that_fails_fails_the_test() -> None:
    def script(request: RecordedRequest) -> Step:
        raise AssertionError(request.target)

    with pytest.raises(AssertionError, match="/a"):
        async with RawUpstream(script) as upstream:
            await exchange(HOST, upstream.port, GET)


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        (Reply(), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (Reply(204), b"HTTP/1.1 204 No Content\r\n\r\n"),
        (
            Reply(999, [("content-length", "1")], b"xy"),
            b"HTTP/1.1 999 \r\ncontent-length: 1\r\n\r\nxy",
        ),
        (
            Reply(body=b"0123456789", chunked=True),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
        ),
        (
            Reply(chunked=True),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (Reply(raw=b"HTTP/1.1 200\n\nas is"), b"HTTP/1.1 200\n\nas is"),
        (HalfBody(), b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234"),
        (
            HalfBody(chunked=True),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n",
        ),
        (Garbage(b"\x00\xff"), b"\x00\xff"),
        (ReadThenClose(), b""),
    ],
)
async def test_what_goes_out_before_the_close(reply: Step, wire: bytes) -> None:
    async with (
        RawUpstream([reply], default=ReadThenClose()) as upstream,
        await RawConnection.open(HOST, upstream.port) as connection,
    ):
        await connection.send(GET + GET)
        assert await connection.read_to_close() == wire
        assert not connection.was_reset


async def test_a_head_request_gets_the_length_without_the_body() -> None:
    async with RawUpstream(default=Reply(body=b"1234")) as upstream:
        answer = parse_response(
            await exchange(HOST, upstream.port, GET.replace(b"GET", b"HEAD")), "HEAD"
        )
    assert answer.values("content-length") == [b"4"]
    assert (answer.complete, answer.body, answer.rest) == (True, b"", b"")


async def test_a_reset_is_a_reset() -> None:
    async with (
        RawUpstream([ReadThenReset()]) as upstream,
        await RawConnection.open(HOST, upstream.port) as connection,
    ):
        await connection.send(POST)
        assert await connection.read_to_close() == b""
        assert connection.was_reset
    assert len(upstream.requests) == 1


async def test_a_hang_never_answers_and_sees_what_follows() -> None:
    async with RawUpstream([Hang()]) as upstream:
        async with await RawConnection.open(HOST, upstream.port) as connection:
            await connection.send(GET)
            await upstream.received()
            await connection.send(b"more")
            with pytest.raises(TimeoutError):
                await connection.read_response(timeout=0.01)
            connection.half_close()
            assert await connection.read_to_close() == b""
        assert upstream.stray == [b"more"]


@pytest.mark.parametrize(
    ("step", "request_bytes"),
    [
        (Reply(close_after=True), GET),
        (Reply(), GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
    ],
)
async def test_the_connection_ends_after_a_reply_if_either_side_says_so(
    step: Step, request_bytes: bytes
) -> None:
    async with (
        RawUpstream([step]) as upstream,
        await RawConnection.open(HOST, upstream.port) as connection,
    ):
        await connection.send(request_bytes)
        assert (await connection.read_response()).complete
        assert await connection.read_to_close() == b""


async def test_connections_and_their_requests_are_counted() -> None:
    async with RawUpstream() as upstream:
        async with await RawConnection.open(HOST, upstream.port) as connection:
            for _ in range(2):
                await connection.send(GET)
                await connection.read_response()
        await exchange(HOST, upstream.port, GET)
    assert upstream.connections == 2
    assert upstream.requests_per_connection == {1: 2, 2: 1}
    assert [(r.connection, r.number) for r in upstream.requests] == [(1, 1), (1, 2), (2, 1)]


async def test_delays_and_idle_closes_keep_the_clock_they_are_given() -> None:
    clock = FakeClock()
    async with (
        RawUpstream([Reply(delay=2)], close_idle_after=4, accept_delay=1, clock=clock) as upstream,
        await RawConnection.open(HOST, upstream.port) as connection,
        asyncio.TaskGroup() as tasks,
    ):
        await connection.send(GET)
        reading = tasks.create_task(connection.read_response())
        await clock.advance(0.9)
        assert upstream.requests == []
        await clock.advance(2)
        assert len(await upstream.received()) == 1
        assert not reading.done()
        await clock.advance(0.2)
        await reading
        closing = tasks.create_task(connection.read_to_close())
        await clock.advance(3.8)
        assert not closing.done()
        await clock.advance(0.2)
        assert await closing == b""
    assert upstream.requests[0].arrived_at == 1
    assert clock.pending == 0


async def test_a_free_port_refuses_until_the_upstream_enters_there() -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedError):
        await exchange(HOST, port, GET)
    async with RawUpstream(port=port) as upstream:
        assert upstream.url == f"http://127.0.0.1:{port}"
        assert parse_response(await exchange(HOST, port, GET)).status == 200


async def test_leaving_closes_what_is_open() -> None:
    async with RawUpstream(default=Hang()) as upstream:
        connection = await RawConnection.open(HOST, upstream.port)
        await connection.send(GET)
        await upstream.received()
    async with connection:
        assert await connection.read_to_close() == b""


async def test_waiting_for_a_request_that_never_comes_ends() -> None:
    async with RawUpstream() as upstream:
        with pytest.raises(TimeoutError):
            await upstream.received(within=0.01)
