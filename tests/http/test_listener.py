"""The listen port on real sockets: what is kept, what closes, what follows what.

RFC 9112 sections 7.1.2 (trailers), 9.3 (persistence), 9.3.2 (pipelining), 9.6 (tear-down).
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from proxy.clock import SystemClock
from proxy.http.bodies import Bodies
from proxy.http.listener import Listener
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer, problem_answer
from proxy.problems import Problem
from proxy.settings import Limits
from tests.kit.client import RawConnection, Response, exchange, parse_response
from tests.kit.listener import HOST
from tests.kit.process import until

MAX_HEADER = 2048
GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"POST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"


class Served:
    """A listener whose handler answers with the target, each request when it may."""

    def __init__(
        self, *, kind: type[Listener] = Listener, write_timeout: float = 60.0, **limits: Any
    ) -> None:
        self.bodies = Bodies(Limits(**{"max_header": MAX_HEADER, **limits}))
        self.refused: list[str] = []
        self.listener = kind(
            self._handle,
            self.bodies.room,
            clock=SystemClock(),
            write_timeout=write_timeout,
            on_refused=self.refused.append,
        )
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.reads = True
        self.seen: list[str] = []
        self.cancelled = 0
        self.failure: Exception | None = None
        self.begins = False
        self.padding = b""
        self.port = 0

    async def send(self, data: bytes) -> Response:
        return parse_response(await exchange(HOST, self.port, data))

    async def _handle(self, request: Request) -> None:
        self.seen.append(request.target)
        try:
            await self.may_answer.wait()
            body = await self.bodies.read(request) if self.reads else b""
        except Problem as problem:
            request.answer(problem_answer(problem, "id"))
            return
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.begins:
            request.begin(200, "", [("Content-Length", "9")])
            await request.send(b"half")
        if self.failure is not None:
            raise self.failure
        request.answer(OwnAnswer(200, "", [("X-Target", request.target)], body + self.padding))


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[Served]:
    server = Served(**limits)
    server.port = await server.listener.listen(HOST, 0, backlog=100)
    try:
        yield server
    finally:
        await server.listener.close(1)
    assert server.listener.connections == 0
    assert server.bodies.room.taken == 0


# What is kept


async def test_a_length_may_begin_with_any_number_of_zeros() -> None:
    """RFC 9110 section 8.6; Python by itself reads no number of more than 4,300 digits."""
    head = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: " + b"2".rjust(5000, b"0")
    async with served(max_header=8192) as server:
        answer = await server.send(head + b"\r\nConnection: close\r\n\r\n{}")
    assert (answer.status, answer.body) == (200, b"{}")


@pytest.mark.parametrize(
    "trailers",
    [
        b"X: " + b"y" * MAX_HEADER + b"\r\n",
        b"X: y\r\n" * (MAX_HEADER // 6 + 1),
        b"X: " + b"y" * 1_000_000,
    ],
    ids=["one field", "many fields", "without an end"],
)
async def test_a_trailer_section_has_the_size_of_a_head(trailers: bytes) -> None:
    async with served() as server:
        answer = await server.send(CHUNKED + trailers + b"\r\n")
    assert (answer.status, answer.values("Connection")) == (431, [b"close"])


async def test_trailers_within_the_size_are_read_and_forgotten() -> None:
    trailers = b"X: " + b"y" * (MAX_HEADER - 7) + b"\r\n\r\n"
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        await caller.send(CHUNKED + trailers + GET % 2)
        answers = [await caller.read_response() for _ in range(2)]
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"{}"), (200, b"")]


async def test_bytes_before_their_turn_are_bounded_and_not_lost() -> None:
    """One receive of them at most, counted; the rest waits in the caller's own buffers."""
    late = b"POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000
    async with (
        served(max_body=6_000_000) as server,
        await RawConnection.open(HOST, server.port) as caller,
    ):
        server.may_answer.clear()
        await caller.send(GET % 1)
        sending = asyncio.get_running_loop().create_task(caller.send(late))

        async def is_kept() -> bool:
            return server.bodies.room.taken > MAX_HEADER

        await until(is_kept)
        await asyncio.wait([sending], timeout=0.3)
        assert server.bodies.room.taken <= MAX_HEADER + 300_000
        server.may_answer.set()
        answers = [await caller.read_response() for _ in range(2)]
        await sending
    assert [len(answer.body) for answer in answers] == [0, 5_000_000]


async def test_without_room_for_what_comes_early_the_answer_is_the_last() -> None:
    async with (
        served(max_body=100, max_buffered=100) as server,
        await RawConnection.open(HOST, server.port) as caller,
    ):
        server.may_answer.clear()
        await caller.send(GET % 1 + GET % 2 * 10)

        async def is_seen() -> bool:
            return bool(server.seen)

        await until(is_seen)
        server.may_answer.set()
        answer = await caller.read_response()
        assert (answer.values("Connection"), await caller.read_to_close()) == ([b"close"], b"")
    assert server.seen == ["/1"]


async def test_a_head_has_a_size_in_all() -> None:
    """RFC 6585 section 5; the bytes are those of the request line and of every field."""
    start, end = b"GET / HTTP/1.1\r\nHost: h\r\nX: ", b"\r\n\r\n"
    fits = start + b"x" * (MAX_HEADER - len(start) - len(end)) + end
    async with served() as server:
        statuses = [(await server.send(head)).status for head in (fits, b"GET /x" + fits[5:])]
    assert statuses == [200, 431]


# What closes


@pytest.mark.parametrize(
    "body", [b"", b"ab"], ids=["none of the body has come", "half of the body has come"]
)
async def test_an_answer_before_the_whole_request_is_the_last(body: bytes) -> None:
    """Else what still comes of the body would be read as a request."""
    head = b"POST /1 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n"
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        server.reads = False
        await caller.send(head + body)
        answer = await caller.read_response("POST")
        await caller.send(GET % 2)
        assert await caller.read_to_close() == b""
    assert (answer.status, answer.values("Connection"), server.seen) == (200, [b"close"], ["/1"])


async def test_a_last_answer_arrives_though_the_caller_is_still_sending() -> None:
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        await caller.send(b"GET / HTTP/9.9.9\r\n\r\n")
        await caller.send(b"x" * 1_000_000)
        answer = await caller.read_response()
        assert await caller.read_to_close() == b""
        assert not caller.was_reset
    assert answer.status == 400


async def test_a_caller_that_goes_away_takes_its_handler_along() -> None:
    async with served() as server:
        server.may_answer.clear()
        async with await RawConnection.open(HOST, server.port) as caller:
            await caller.send(GET % 1)

            async def is_seen() -> bool:
                return bool(server.seen)

            await until(is_seen)

        async def is_cancelled() -> bool:
            return server.cancelled == 1

        await until(is_cancelled)


async def test_a_failing_handler_is_answered_for_if_nothing_has_left() -> None:
    async with served() as server:
        server.failure = ValueError("s3cr3t")
        answer = await server.send(GET % 1)
    assert (answer.status, answer.values("Connection")) == (500, [b"close"])
    assert b"s3cr3t" not in answer.body


async def test_half_an_answer_is_cut_short() -> None:
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        server.begins, server.failure = True, ValueError("late")
        await caller.send(GET % 1)
        raw = await caller.read_to_close()
        assert caller.was_reset or raw.endswith(b"half")
    assert raw.count(b"HTTP/1.1") == 1


async def test_a_shutdown_ends_idle_connections_and_lets_requests_end() -> None:
    async with served() as server:
        server.may_answer.clear()
        async with (
            await RawConnection.open(HOST, server.port) as idle,
            await RawConnection.open(HOST, server.port) as busy,
        ):
            await idle.send(b"GET /")
            await busy.send(GET % 1)

            async def are_there() -> bool:
                return bool(server.seen) and server.listener.connections == 2

            await until(are_there)
            closing = asyncio.get_running_loop().create_task(server.listener.close(5))
            assert await idle.read_to_close() == b""
            server.may_answer.set()
            answer = await busy.read_response()
            assert (answer.status, answer.values("Connection")) == (200, [b"close"])
            await closing


async def test_a_shutdown_lets_what_is_written_arrive() -> None:
    """Though its handler has ended, and the caller has not read any of it yet."""
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        server.padding = b"x" * 16_000_000  # more than the kernel keeps for both ends
        await caller.send(GET % 1)

        async def is_written() -> bool:
            return server.listener.is_delivering

        await until(is_written)
        closing = asyncio.get_running_loop().create_task(server.listener.close(60))
        answer = await caller.read_response(timeout=60)
        await closing
    assert len(answer.body) == len(server.padding)
    assert not server.listener.is_delivering


async def test_a_shutdown_cuts_off_a_caller_that_takes_nothing() -> None:
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        server.padding = b"x" * 16_000_000
        await caller.send(GET % 1)

        async def is_written() -> bool:
            return server.listener.is_delivering

        await until(is_written)
        await server.listener.close(0.1)
        assert server.listener.connections == 0


async def test_a_shutdown_does_not_wait_for_ever() -> None:
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        server.may_answer.clear()
        await caller.send(GET % 1)

        async def is_seen() -> bool:
            return bool(server.seen)

        await until(is_seen)
        await server.listener.close(0.1)
        assert await caller.read_to_close() == b""
    assert server.cancelled == 1


# What follows what


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_requests_behind_an_offer_to_upgrade_are_served(protocol: bytes) -> None:
    """RFC 9110 section 7.8: the offer may be ignored, and the connection goes on."""
    offer = b"GET /1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        await caller.send(offer + GET % 2 + GET % 3)
        answers = [await caller.read_response() for _ in range(3)]
    assert [answer.values("X-Target") for answer in answers] == [[b"/1"], [b"/2"], [b"/3"]]


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/0.9", b"GET / HTTP/2.0", b"GET / HTTP/1.0", b"GET /"]
)
async def test_answers_are_of_the_version_that_is_spoken_here(head: bytes) -> None:
    """RFC 9110 section 6.2: an answer has the highest version the server conforms to."""
    async with served() as server:
        raw = await exchange(HOST, server.port, head + b"\r\nHost: h\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("keeps", [False, True])
async def test_http_1_0_stays_only_when_asked_to(*, keeps: bool) -> None:
    head = b"GET /1 HTTP/1.0\r\n" + (b"Connection: keep-alive\r\n" if keeps else b"") + b"\r\n"
    async with served() as server, await RawConnection.open(HOST, server.port) as caller:
        await caller.send(head)
        answer = await caller.read_response()
        if not keeps:
            assert await caller.read_to_close() == b""
    assert answer.values("Connection") == [b"keep-alive" if keeps else b"close"]


# Stalls


@pytest.mark.parametrize(
    "loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_a_head_that_came_during_a_stall_of_the_loop_is_answered(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Its time is over when the loop goes on, and its bytes are there."""
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(send_in_a_stall(GET % 1)) == b"HTTP/1.1 200 "


def test_half_a_head_that_came_during_a_stall_is_late() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(send_in_a_stall(b"GET /1 HTTP/1.1\r\n")) == b""


async def send_in_a_stall(data: bytes) -> bytes:
    """Send while the loop does nothing until after the head's time; return the answer's start."""
    loop = asyncio.get_running_loop()
    async with served(header_timeout=1.5) as server:
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.create_connection((HOST, server.port)) as caller:

            async def is_there() -> bool:
                return server.listener.connections == 1

            def stall() -> None:  # among what the sockets tell, before the timers
                loop.remove_reader(ours)
                caller.send(data)  # fits its buffer
                threading.Event().wait(1.7)

            await until(is_there)
            ours.setblocking(False)  # noqa: FBT003 -- the socket module's own signature
            loop.add_reader(ours, stall)
            theirs.send(b"x")
            caller.setblocking(False)  # noqa: FBT003 -- likewise
            async with asyncio.timeout(20):
                try:
                    return (await loop.sock_recv(caller, 65_536))[:13]
                except ConnectionResetError:
                    return b""
