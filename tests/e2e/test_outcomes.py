"""Everything that can go wrong on the wire: nothing is created twice, and the caller can tell.

Sent at most once, unless it provably never left. Retry-After only where nothing was created.
"""

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from proxy.http.client import Client
from proxy.service.lifecycle import Running, running
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.clock import FakeClock
from tests.kit.fault_proxy import FaultProxy, ResetOnConnect
from tests.kit.listener import HOST, Listener, reset
from tests.kit.process import until
from tests.kit.proxy import proxy_for, settings_for
from tests.kit.stalls import noting_stalls
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

EXPORTS = "/api/v2/recordings/exports"
UNPACED = "/api/v2/users/me"
ACCEPTED = Reply(202, body=b'{"state": "PENDING"}')
FAST = {"interval": 0.05}
IMPATIENT = {"response_timeout": 2}  # longer than the machine may stand still


async def call(
    proxy: Running,
    method: str = "POST",
    path: str = EXPORTS,
    *,
    key: str = "a",
    version: str = "1.1",
) -> Response:
    """Send a request with a token of its own, so that no other one delays it."""
    body = b'{"mediaType": "voice"}' if method == "POST" else b""
    head = (
        f"{method} {path} HTTP/{version}\r\nHost: proxy\r\nAuthorization: Bearer {key}\r\n"
        f"X-Export-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    port = port_of(proxy.url)
    return parse_response(await exchange(HOST, port, head.encode() + body, timeout=30), method)


def problem(response: Response) -> tuple[int, str]:
    """Status and name of a problem; fails for an answer that is none."""
    assert response.values("content-type") == [b"application/problem+json"]
    return response.status, json.loads(response.body)["type"].removeprefix("urn:export-proxy:")


def sends_per_key(upstream: RawUpstream) -> Counter[bytes]:
    return Counter(request.values("x-export-key")[0] for request in upstream.requests)


# Sent, and no usable answer

LOST = (502, "outcome-unknown")
SILENT = (504, "outcome-unknown")
UNUSABLE = (502, "bad-upstream")


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (ReadThenReset(), LOST),
        (ReadThenClose(), LOST),
        (Hang(), SILENT),
        (Reply(raw=b"HTTP/1.1 202 Acc"), SILENT),
        (Reply(raw=b"HTTP/1.1 202 Acc", close_after=True), LOST),
        (Garbage(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n"), UNUSABLE),
        (Garbage(b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n"), UNUSABLE),
        (Garbage(b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n"), UNUSABLE),
        (Garbage(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), UNUSABLE),
        (Reply(headers=[("Content-Length", "1"), ("Content-Length", "2")], body=b"a"), UNUSABLE),
        (Garbage(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), UNUSABLE),
    ],
    ids=[
        *("reset", "close", "silence", "half a head, silence", "half a head, close"),
        *("another protocol", "TLS", "status 999", "unasked 101", "two lengths", "no chunk"),
    ],
)
async def test_sent_and_lost(step: Step, outcome: tuple[int, str]) -> None:
    """Sent once, answered once, and nobody is told to come back.

    Only of a safe method on a route without a pace may the HTTP client make a second try.
    """
    async with (
        RawUpstream(default=step) as upstream,
        proxy_for(upstream.url, upstream=IMPATIENT, pacing=FAST) as proxy,
    ):
        responses = await asyncio.gather(
            call(proxy, "POST", EXPORTS, key="1"),
            call(proxy, "GET", EXPORTS, key="2"),
            call(proxy, "POST", UNPACED, key="3"),
            call(proxy, "GET", UNPACED, key="4"),
        )
    for response in responses:
        assert problem(response) == outcome
        assert response.values("retry-after") == []
    assert upstream.stray == []
    sends = sends_per_key(upstream)
    assert 1 <= sends.pop(b"4") <= 2
    assert sends == {b"1": 1, b"2": 1, b"3": 1}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    "step",
    [
        HalfBody(),
        HalfBody(chunked=True),
        Reply(raw=b"HTTP/1.1 202 Accepted\r\nContent-Length: 10\r\n\r\n01234"),
        Reply(raw=b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n"),
    ],
    ids=["length", "chunked", "length, then silence", "chunked, then silence"],
)
async def test_half_a_body(step: Step, version: str) -> None:
    """The caller sees that the answer is cut short: no clean end, no second send."""
    async with (
        RawUpstream(default=step) as upstream,
        proxy_for(upstream.url, upstream=IMPATIENT, pacing=FAST) as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as caller,
    ):
        await caller.send(
            f"POST {EXPORTS} HTTP/{version}\r\nHost: proxy\r\nAuthorization: Bearer a\r\n"
            "Content-Length: 2\r\n\r\n{}".encode()
        )
        response = await caller.read_response("POST")
        was_reset = caller.was_reset
    assert response.status in {200, 202}
    assert response.body in {b"", b"01234"}
    assert not response.complete or was_reset
    assert response.values("retry-after") == []
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("head", "part", "ends_it"),
    [
        (b"Transfer-Encoding: chunked\r\n", b"5\r\n01234\r\n", b"zz\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\n01234\r\n", b""),
        (b"", b"01234", b""),
    ],
    ids=["a chunk that is none", "chunks, then a reset", "no length, then a reset"],
)
async def test_a_body_that_breaks_off_later(head: bytes, part: bytes, ends_it: bytes) -> None:
    """The caller who has had some of it sees at once that this was not all."""
    gate = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + part)
        await gate.wait()
        if ends_it:
            writer.write(ends_it)
            await reader.read()
        else:
            reset(writer)

    async with (
        Listener(answer) as api,
        proxy_for(f"http://{HOST}:{api.port}") as proxy,
        await RawConnection.open(HOST, port_of(proxy.url)) as caller,
    ):
        await caller.send(
            f"GET {UNPACED} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer a\r\n\r\n".encode()
        )
        raw = b""
        while not raw.endswith(b"01234\r\n"):
            raw += await caller.read_some()
        gate.set()
        raw += await caller.read_to_close()
    response = parse_response(raw)
    assert (response.status, response.body, response.complete) == (200, b"01234", False)


async def test_a_bug_in_the_middle_of_an_answer_writes_no_other_into_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = HalfBody().encode()[:-5], b"01234"
    chunks = iter([second])

    async def next_chunk(*_: object) -> bytes:
        return next(chunks)  # the second time StopIteration, as bugs go

    monkeypatch.setattr(Client, "next_chunk", next_chunk)
    async with (
        RawUpstream(default=Reply(raw=first)) as upstream,
        proxy_for(upstream.url) as proxy,
    ):
        response = await call(proxy, "GET", UNPACED)
        counted = proxy.proxy.registry.get_sample_value(
            "export_proxy_requests_total",
            {"account": "other", "route": "api", "method": "GET", "code": "500", "origin": "proxy"},
        )
    assert (response.status, response.body, response.complete) == (200, second, False)
    assert counted == 1


async def test_a_caller_that_leaves_in_the_middle_of_an_answer_is_counted_as_gone() -> None:
    """By the proxy: the API has done its part."""
    labels = {"account": "other", "route": "api", "method": "GET", "code": "499", "origin": "proxy"}
    half = Reply(raw=HalfBody().encode())
    async with RawUpstream(default=half) as upstream, proxy_for(upstream.url) as proxy:
        async with await RawConnection.open(HOST, port_of(proxy.url)) as caller:
            await caller.send(
                f"GET {UNPACED} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a\r\n\r\n".encode()
            )
            await caller.read_some()

        async def is_over() -> bool:
            return proxy.proxy.under_way == 0

        await until(is_over)
        registry = proxy.proxy.registry
        assert registry.get_sample_value("export_proxy_requests_total", labels) == 1


@pytest.mark.timed
async def test_a_lost_answer_delays_nobody_else() -> None:
    """The slot counts, the next caller gets the next one."""
    async with (
        noting_stalls() as stalls,
        RawUpstream([Hang(), ReadThenReset()], default=ACCEPTED) as upstream,
        proxy_for(upstream.url, upstream=IMPATIENT, pacing={"interval": 0.1}) as proxy,
    ):
        responses = await asyncio.gather(*(call(proxy) for _ in range(4)))
    assert sorted(response.status for response in responses) == [202, 202, 502, 504]
    times = [request.arrived_at for request in upstream.requests]
    assert len(times) == 4
    assert 0.28 - stalls.longest <= times[3] - times[0] < 0.6 + stalls.total


async def test_a_caller_that_does_not_read_leaves_connections_to_the_others() -> None:
    """One account may have so many answers on their way, and another its connection at once."""
    long = Reply(raw=Reply(200, body=b"x" * 20_000_000).encode(b"GET"))
    head = f"GET {UNPACED} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer greedy\r\n\r\n".encode()

    def script(request: RecordedRequest) -> Step:
        return long if request.values("authorization") == [b"Bearer greedy"] else ACCEPTED

    async with (
        RawUpstream(script) as upstream,
        proxy_for(
            upstream.url,
            upstream={"max_connections": 3, "connect_timeout": 5},
            pacing={"max_in_flight": 2},
            retry={"max_attempts": 1},
        ) as proxy,
        AsyncExitStack() as stack,
    ):
        port = port_of(proxy.url)
        for _ in range(4):
            greedy = await stack.enter_async_context(await RawConnection.open(HOST, port))
            await greedy.send(head)
        await upstream.received(2)
        assert (await call(proxy, "GET", UNPACED, key="b")).status == 202
        assert len(upstream.requests) == 3


# Connections that were idle


async def test_idle_connections_that_close_just_as_posts_start() -> None:
    """Two hundred POSTs race with closes: each is sent at most once, and answered."""
    idle, pairs, rounds = 0.2, 10, 20

    async def race(pair: int) -> tuple[list[Response], RawUpstream]:
        """One connection at a time, so that its age is known."""
        responses = []
        async with (
            RawUpstream(default=ACCEPTED, close_idle_after=idle) as upstream,
            proxy_for(upstream.url, pacing=FAST) as proxy,
        ):
            await call(proxy, key="warm")
            for turn in range(rounds):
                early = 0.006 * ((pair + turn) % 16 - 3)  # the request itself takes some ms
                await asyncio.sleep(0 if turn % 10 == 9 else idle - early)  # some meet it open
                responses.append(await call(proxy, key=str(turn)))
        return responses, upstream

    reused = closed = accepted = 0
    for responses, upstream in await asyncio.gather(*(race(pair) for pair in range(pairs))):
        for response in responses:
            if response.status != 202:
                assert problem(response) in {LOST, (503, "upstream-unreachable")}
                assert (response.status == 503) == bool(response.values("retry-after"))
        assert set(sends_per_key(upstream).values()) == {1}
        accepted += sum(response.status == 202 for response in responses)
        reused += len(upstream.requests) - len(upstream.requests_per_connection)
        closed += upstream.connections - 1
    assert accepted >= pairs * rounds // 10  # those that met an open one
    assert reused > 0
    assert closed > 0


async def test_a_connection_is_used_again_while_it_is_fresh() -> None:
    """Idle for less than `idle_timeout`; with 0 never."""
    async with RawUpstream(default=ACCEPTED) as upstream:
        for idle_timeout in (4, 0):
            async with proxy_for(
                upstream.url, upstream={"idle_timeout": idle_timeout}, pacing=FAST
            ) as proxy:
                for _ in range(3):
                    await call(proxy)
    assert list(upstream.requests_per_connection.values()) == [3, 1, 1, 1]


@pytest.mark.parametrize("step", [ReadThenReset(), ReadThenClose()], ids=["reset", "close"])
@pytest.mark.parametrize("path", [UNPACED, EXPORTS])
async def test_a_get_that_meets_the_close_of_its_connection_is_sent_once_more(
    path: str, step: Step
) -> None:
    """In its turn: also the second one keeps the pace of its route. A POST is not sent again."""
    interval = 0.4
    lost: set[bytes] = set()

    def script(request: RecordedRequest) -> Step:
        if request.number == 1 or request.method in lost:
            return ACCEPTED
        lost.add(request.method)
        return step

    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing={"interval": interval}) as proxy,
    ):
        responses = [await call(proxy, method, path) for method in ("GET", "GET", "POST")]
        retries = proxy.proxy.registry.get_sample_value(
            "export_proxy_retries_total", {"account": "other", "reason": "connection_closed"}
        )
    assert [response.status for response in responses[:2]] == [202, 202]
    assert problem(responses[2]) == LOST
    assert retries == 1
    assert [request.method for request in upstream.requests] == [b"GET"] * 3 + [b"POST"]
    if path == EXPORTS:
        times = [request.arrived_at for request in upstream.requests]
        assert all(later - sooner > interval - 0.02 for sooner, later in pairwise(times))


async def test_a_get_is_sent_once_more_however_long_it_waited_for_its_turn() -> None:
    """`retry.max_elapsed` counts from the first send, which here comes after 200 s."""

    def script(request: RecordedRequest) -> Step:
        return ReadThenReset() if request.number == 2 else ACCEPTED

    clock = FakeClock()
    async with (
        RawUpstream(script) as upstream,
        running(
            settings_for(
                upstream.url,
                upstream={"idle_timeout": 60},
                pacing={"interval": 100},
                retry={"max_elapsed": 150},
            ),
            clock,
        ) as proxy,
    ):

        async def are_there(waiting: int, sent: int) -> None:
            async def question() -> bool:
                states = [account.state(0.0) for account in proxy.proxy.accounts.accounts()]
                depth = sum(queue.queue_depth for one in states for queue in one.routes)
                return (depth, len(upstream.requests)) == (waiting, sent)

            await until(question)

        async with asyncio.TaskGroup() as callers:
            first = callers.create_task(call(proxy, "POST", EXPORTS))
            await are_there(1, 0)
            second = callers.create_task(call(proxy, "GET", EXPORTS))
            await are_there(2, 0)
            await clock.advance(100)
            assert (await first).status == 202
            await clock.advance(100)
            await are_there(1, 2)
            await clock.advance(100)
        assert second.result().status == 202
        assert len(upstream.requests) == 3


async def test_a_get_that_is_lost_again_and_again_is_sent_twice() -> None:
    """However many connections the API closes so."""

    def script(request: RecordedRequest) -> Step:
        return ACCEPTED if request.number == 1 and request.method == b"POST" else ReadThenReset()

    for path in (UNPACED, EXPORTS):
        async with RawUpstream(script) as upstream, proxy_for(upstream.url, pacing=FAST) as proxy:
            await call(proxy, "POST", path, key="warm")
            assert problem(await call(proxy, "GET", path)) == LOST
        assert [request.method for request in upstream.requests] == [b"POST", b"GET", b"GET"]


async def test_a_get_that_may_be_sent_once_is() -> None:
    """`retry.max_attempts` bounds this as every other send."""

    def script(request: RecordedRequest) -> Step:
        return ACCEPTED if request.number == 1 else ReadThenReset()

    async with (
        RawUpstream(script) as upstream,
        proxy_for(upstream.url, pacing=FAST, retry={"max_attempts": 1}) as proxy,
    ):
        await call(proxy, "GET", UNPACED)
        assert problem(await call(proxy, "GET", UNPACED)) == LOST
    assert len(upstream.requests) == 2


async def test_an_answers_field_may_be_as_long_as_a_callers_head() -> None:
    """`limits.max_header`, where that is above what every answer may have."""
    long = [("X-Long", "x" * 150_000)]
    for max_header, status in ((200_000, 202), (16_384, 502)):
        async with (
            RawUpstream(default=Reply(202, long)) as upstream,
            proxy_for(upstream.url, limits={"max_header": max_header}) as proxy,
        ):
            assert (await call(proxy)).status == status


async def test_a_closed_connection_is_never_used() -> None:
    """Neither one that the API closed, nor one that has been idle for too long."""
    async with (
        RawUpstream(
            [Reply(202, close_after=True), ACCEPTED, ACCEPTED], default=ACCEPTED
        ) as upstream,
        proxy_for(upstream.url, upstream={"idle_timeout": 0.3}, pacing=FAST) as proxy,
    ):
        statuses = [(await call(proxy)).status]
        await asyncio.sleep(0.05)
        statuses.append((await call(proxy)).status)  # the first was closed
        await asyncio.sleep(0.6)
        statuses.append((await call(proxy)).status)  # the second is too old
    assert statuses == [202, 202, 202]
    assert upstream.requests_per_connection == {1: 1, 2: 1, 3: 1}


# Never left


async def test_refused_connections_are_tried_again_until_the_api_is_up() -> None:
    """Up within a second: everybody gets a 202, nobody twice."""
    port = free_port()
    async with proxy_for(f"http://{HOST}:{port}", pacing={"interval": 0.1}) as proxy:
        calls = [asyncio.ensure_future(call(proxy, key=str(n))) for n in range(5)]
        calls += [asyncio.ensure_future(call(proxy, "GET", UNPACED, key="5"))]
        await asyncio.sleep(0.5)
        async with RawUpstream(default=ACCEPTED, port=port) as upstream:
            responses = await asyncio.gather(*calls)
    assert [response.status for response in responses] == [202] * 6
    assert sends_per_key(upstream) == {str(n).encode(): 1 for n in range(6)}


@pytest.mark.timed
async def test_what_never_left_is_tried_four_times_and_may_come_back() -> None:
    """The tries span at least 1.75 s; nothing was sent, so the caller hears when to return."""

    async def try_out(url: str) -> tuple[Response, float]:
        async with proxy_for(url, pacing={"interval": 0.1}) as proxy:
            begun = time.monotonic()
            return await call(proxy), time.monotonic() - begun

    async with (
        noting_stalls() as stalls,
        FaultProxy(free_port(), ResetOnConnect()) as resetting,
    ):
        outcomes = await asyncio.gather(
            try_out(f"http://{HOST}:{free_port()}"),  # connect refused
            try_out("http://no-such-host.invalid"),  # DNS failure
            try_out(f"https://{HOST}:{resetting.port}"),  # TLS failure
        )
        assert resetting.connections == 4
    for response, elapsed in outcomes:
        assert problem(response) == (503, "upstream-unreachable")
        (retry_after,) = response.values("retry-after")
        assert int(retry_after) >= 1
        assert 1.75 <= elapsed < 6 + stalls.total


async def test_a_connect_that_hangs_is_given_up() -> None:
    """A TLS handshake without an answer ends with `connect_timeout`; nothing was sent."""
    async with (
        RawUpstream(default=Hang(), accept_delay=60) as upstream,
        proxy_for(
            f"https://127.0.0.1:{upstream.port}",
            upstream={"connect_timeout": 0.2},
            pacing=FAST,
            retry={"max_attempts": 2, "initial_backoff": 0.1},
        ) as proxy,
    ):
        response = await call(proxy)
    assert problem(response) == (503, "upstream-unreachable")
    assert response.values("retry-after")
    assert upstream.connections == 2
