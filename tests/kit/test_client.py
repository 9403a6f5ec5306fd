"""The raw client reads answers as h11 does, and says where they end."""

import asyncio

import h11
import pytest

from tests.kit.client import RawConnection, exchange, parse_response
from tests.kit.listener import HOST, Listener
from tests.kit.upstream import Garbage, RawUpstream, Reply

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def test_a_response_keeps_its_spelling_and_order() -> None:
    answer = parse_response(
        b"HTTP/1.1 429 Slow Down\r\nX-B: 1\r\ncontent-LENGTH: 2\r\nx-b: 2\r\n\r\nhi"
    )
    assert (answer.status, answer.reason) == (429, b"Slow Down")
    assert answer.headers == [(b"X-B", b"1"), (b"content-LENGTH", b"2"), (b"x-b", b"2")]
    assert answer.values("X-b") == [b"1", b"2"]
    assert (answer.body, answer.complete, answer.rest) == (b"hi", True, b"")


def test_interim_responses_and_what_follows_are_told_apart() -> None:
    answer = parse_response(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 204"
    )
    assert answer.interim == [100, 103]
    assert (answer.status, answer.body, answer.rest) == (200, b"hi", b"HTTP/1.1 204")


@pytest.mark.parametrize(
    ("raw", "body", "complete"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", b"hi", False),
        (b"HTTP/1.1 200 OK\r\n\r\nto the close", b"to the close", True),
    ],
)
def test_a_truncated_body_is_no_clean_end(raw: bytes, body: bytes, complete: bool) -> None:  # noqa: FBT001 - a case
    answer = parse_response(raw)
    assert (answer.body, answer.complete) == (body, complete)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\n", b"hello\r\n\r\n"])
def test_what_is_no_response_raises(raw: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        parse_response(raw)


def test_no_body_follows_the_answer_to_head() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    assert parse_response(raw, "HEAD").complete
    assert not parse_response(raw, "GET").complete


async def test_an_exchange_ends_with_the_response_on_a_connection_left_open() -> None:
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    async with RawUpstream([Reply(raw=wire)]) as upstream:
        assert await exchange(HOST, upstream.port, GET) == wire


async def test_an_exchange_of_nonsense_ends_with_the_close() -> None:
    async with RawUpstream([Garbage(b"220 smtp\r\n\r\nready")]) as upstream:
        assert await exchange(HOST, upstream.port, b"?? ? ?\r\n\r\n") == b"220 smtp\r\n\r\nready"
        assert len(upstream.violations) == 1
        upstream.violations.clear()


async def test_an_answer_that_comes_before_all_is_sent_is_read() -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await asyncio.Event().wait()  # and reads no further

    async with asyncio.timeout(5), Listener(refuse) as listener:
        assert await exchange(HOST, listener.port, GET + b"x" * 30_000_000) == refusal


async def test_an_exchange_times_out() -> None:
    async with RawUpstream([Reply(delay=60)]) as upstream:
        with pytest.raises(TimeoutError):
            await exchange(HOST, upstream.port, GET, timeout=0.01)


async def test_pipelined_answers_are_read_one_by_one() -> None:
    async with (
        RawUpstream([Reply(201, body=b"one"), Reply(202)]) as upstream,
        await RawConnection.open(HOST, upstream.port) as connection,
    ):
        await connection.send(GET + GET)
        answers = [await connection.read_response() for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 202]


async def test_a_client_can_reset() -> None:
    was_reset = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter, __: int) -> None:
        with pytest.raises(ConnectionResetError):
            await reader.read()
        was_reset.set()

    async with asyncio.timeout(5), Listener(serve) as listener:
        connection = await RawConnection.open(HOST, listener.port)
        await connection.send(b"x")
        connection.reset()
        await was_reset.wait()
