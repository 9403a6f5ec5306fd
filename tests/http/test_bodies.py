"""Bodies and their bounds, on a socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.http.bodies import Bodies
from proxy.http.listener import Listener
from proxy.http.request import Request
from proxy.http.responses import OwnAnswer, problem_answer
from proxy.problems import Problem
from proxy.settings import Limits
from tests.kit.client import RawConnection, Response, exchange, parse_response
from tests.kit.listener import HOST


class Reader:
    """A server that reads bodies and keeps them until they are let go."""

    def __init__(self, **limits: Any) -> None:
        self.port = 0
        self.is_keeping = False
        self._bodies = Bodies(Limits(**limits))
        self._kept = asyncio.Condition()
        self._count = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["Reader"]:
        listener = Listener(self._handle, self._bodies.room, clock=SystemClock())
        self.port = await listener.listen(HOST, 0, backlog=100)
        try:
            yield self
        finally:
            await listener.close(1)

    async def keeps(self, count: int) -> None:
        """Wait until so many bodies are kept."""
        async with asyncio.timeout(5), self._kept:
            await self._kept.wait_for(lambda: self._count == count)

    async def let_go(self) -> None:
        async with self._kept:
            self.is_keeping = False
            self._kept.notify_all()

    async def send(self, data: bytes) -> Response:
        return parse_response(await exchange(HOST, self.port, data))

    async def _handle(self, request: Request) -> None:
        try:
            body = await self._bodies.read(request)
        except Problem as problem:
            answer = problem_answer(problem, "id")
            request.answer(answer)
            return
        try:
            await self._keep()
        finally:
            self._bodies.release(request)
        request.answer(OwnAnswer(200, "", [], body))

    async def _keep(self) -> None:
        async with self._kept:
            self._count += 1
            self._kept.notify_all()
            try:
                await self._kept.wait_for(lambda: not self.is_keeping)
            finally:
                self._count -= 1
                self._kept.notify_all()


def reader(**limits: Any) -> Any:
    return Reader(**{"max_body": 1000, "max_buffered": 1500, "body_timeout": 5, **limits}).serve()


def post(body: bytes, *fields: str) -> bytes:
    head = ["POST /a HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(head).encode() + body


def post_chunks(*chunks: bytes) -> bytes:
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def is_refused(answer: Response, name: str, status: int) -> bool:
    """Whether it is our refusal of that name, after which the connection closes."""
    return (
        answer.status == status
        and f'"urn:export-proxy:{name}"'.encode() in answer.body
        and answer.values("Connection") == [b"close"]
    )


FULL = b"x" * 1000


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (post(b""), b""),
        (post(b"a"), b"a"),
        (post(FULL), FULL),
        (post_chunks(), b""),
        (post_chunks(FULL[:400], FULL[400:]), FULL),
        (b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    ],
)
async def test_a_body_up_to_the_limit_is_read_whole(data: bytes, body: bytes) -> None:
    async with reader() as server:
        answer = await server.send(data)
    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize(
    "data", [post(FULL + b"x"), post_chunks(FULL, b"x"), post_chunks(FULL * 9)]
)
async def test_one_byte_more_is_too_large(data: bytes) -> None:
    async with reader() as server:
        assert is_refused(await server.send(data), "too-large", 413)


async def test_an_announced_length_is_refused_before_the_body_is_asked_for() -> None:
    head = post(FULL + b"x", "Expect: 100-continue").removesuffix(FULL + b"x")
    async with reader() as server:
        answer = await server.send(head)
    assert is_refused(answer, "too-large", 413)
    assert answer.interim == []


async def test_a_caller_that_waits_for_it_is_told_to_go_on() -> None:
    async with reader() as server:
        answer = await server.send(post(b"body", "Expect: 100-continue"))
    assert (answer.interim, answer.body) == ([100], b"body")


async def test_a_caller_of_an_older_version_is_not_told_to_go_on() -> None:
    """RFC 9110 section 10.1.1: an interim answer would be taken for the answer."""
    async with reader() as server:
        data = post(b"body", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        answer = await server.send(data)
    assert (answer.interim, answer.body) == ([], b"body")


@pytest.mark.parametrize("data", [post(b"abc")[:-1], post_chunks(b"abc")[:-2]])
async def test_a_body_that_does_not_end_in_time_is_given_up(data: bytes) -> None:
    async with reader(body_timeout=0.1) as server:
        assert is_refused(await server.send(data), "timeout", 408)


async def test_dripping_does_not_prolong_the_time() -> None:
    async with (
        reader(body_timeout=0.3) as server,
        await RawConnection.open(HOST, server.port) as connection,
        asyncio.timeout(10),  # half of what the whole body would take
    ):
        answer = asyncio.get_running_loop().create_task(connection.read_response("POST"))
        await connection.send(post(FULL).removesuffix(FULL))
        while not answer.done():
            await connection.send(b"x")
            await asyncio.wait([answer], timeout=0.02)
    assert is_refused(answer.result(), "timeout", 408)


async def test_broken_chunks_are_never_taken_for_a_body() -> None:
    """What the parser finds at once is a 400; what it finds later may end at the deadline."""
    good, bad = b"3\r\nabc\r\n", b"zz\r\nabc\r\n0\r\n\r\n"
    head = post_chunks().removesuffix(b"0\r\n\r\n")
    async with (
        reader(body_timeout=1) as server,
        await RawConnection.open(HOST, server.port) as connection,
    ):
        at_once = await server.send(head + bad)
        await connection.send(head + good)
        await connection.send(bad)
        later = await connection.read_response("POST")
    assert b'"urn:export-proxy:bad-request"' in at_once.body
    assert (at_once.status, later.status) in {(400, 400), (400, 408)}


async def test_all_bodies_together_are_bounded_until_they_are_let_go() -> None:
    async with reader() as server, asyncio.TaskGroup() as tasks:
        server.is_keeping = True
        first = tasks.create_task(server.send(post(FULL)))
        await server.keeps(1)
        fits = tasks.create_task(server.send(post(FULL[:350])))
        await server.keeps(2)
        refused = await server.send(post(b"x"))
        await server.let_go()
        await fits
        again = await server.send(post(FULL))
    assert is_refused(refused, "overloaded", 503)
    assert refused.values("Retry-After") == [b"1"]
    assert [answer.status for answer in (first.result(), fits.result(), again)] == [200, 200, 200]


@pytest.mark.parametrize(
    "data",
    [
        post_chunks(FULL, b"x"),
        post(FULL)[:-1],
        post_chunks(FULL)[:-7] + b"zz\r\n",
    ],
    ids=["too-large", "timeout", "bad-request"],
)
async def test_a_refused_body_takes_no_room_any_more(data: bytes) -> None:
    async with reader(max_buffered=1000, body_timeout=1) as server:
        for _ in range(2):
            assert (await server.send(data)).status in (400, 408, 413)
        assert (await server.send(post(FULL))).status == 200


async def test_a_refusal_for_lack_of_room_takes_none_itself() -> None:
    async with reader(max_buffered=1000) as server, asyncio.TaskGroup() as tasks:
        server.is_keeping = True
        kept = tasks.create_task(server.send(post(FULL[:600])))
        await server.keeps(1)
        refusals = [await server.send(post(FULL[:600])) for _ in range(3)]
        fits = tasks.create_task(server.send(post(FULL[:300])))
        await server.keeps(2)
        await server.let_go()
    assert all(is_refused(answer, "overloaded", 503) for answer in refusals)
    assert [answer.result().status for answer in (kept, fits)] == [200, 200]


async def test_a_caller_that_goes_away_takes_its_bytes_along() -> None:
    async with reader(max_buffered=1000) as server:
        server.is_keeping = True
        for data in (post(FULL)[:-1], post(FULL)):
            async with await RawConnection.open(HOST, server.port) as connection:
                await connection.send(data)
                if data == post(FULL):
                    await server.keeps(1)
        await server.keeps(0)
        await server.let_go()
        assert (await server.send(post(FULL))).status == 200
