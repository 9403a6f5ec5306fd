"""No doubles: what a request that comes again finds, on real sockets."""

import asyncio
import json
import socket
from collections.abc import Callable

import pytest

from proxy.service.lifecycle import Running
from tests.kit.client import RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import proxy_for
from tests.kit.upstream import RawUpstream, ReadThenReset, Reply, Step

EXPORTS = "/api/v2/recordings/exports"
BODY = b'{"mediaType": "voice"}'
ACCEPTED = Reply(202, [("X-Job", "1"), ("Set-Cookie", "a=b")], body=b'{"id": "1"}')
SECOND = Reply(202, body=b'{"id": "2"}')
FAST = {"interval": 0.05}


def request(  # noqa: PLR0913 -- one keyword for each part
    key: str | None = None,
    *,
    body: bytes = BODY,
    token: str = "a",
    path: str = EXPORTS,
    request_id: str = "first",
    wait: int | None = None,
) -> bytes:
    own = "" if key is None else f"Idempotency-Key: {key}\r\n"
    own += "" if wait is None else f"Prefer: wait={wait}\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer {token}\r\n"
        f"X-Request-Id: {request_id}\r\n{own}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def send(proxy: Running, data: bytes) -> Response:
    return parse_response(await exchange(HOST, port_of(proxy.url), data, timeout=30), "POST")


async def leave(proxy: Running, upstream: RawUpstream, data: bytes) -> None:
    """Send a request and leave when the API has it."""
    before = len(upstream.requests)
    async with await RawConnection.open(HOST, port_of(proxy.url)) as caller:
        await caller.send(data)
        await upstream.received(before + 1)
    await gone(proxy)


async def gone(proxy: Running) -> None:
    """Wait until the proxy knows that nobody waits any longer."""

    async def nobody() -> bool:
        return proxy.proxy.handled == 0

    await until(nobody)


def name(response: Response) -> str:
    if response.values("content-type") != [b"application/problem+json"]:
        return str(response.status)
    return str(json.loads(response.body)["type"]).removeprefix("urn:export-proxy:")


def outcomes(proxy: Running) -> dict[str, float]:
    """What the metric counted, by outcome."""
    return {
        sample.labels["outcome"]: sample.value
        for family in proxy.proxy.registry.collect()
        if family.name == "export_proxy_repeats"
        for sample in family.samples
        if sample.name == "export_proxy_repeats_total"
    }


@pytest.mark.parametrize("key", [None, "k-1"])
async def test_answer_of_a_caller_that_left_is_given_to_the_same_again(key: str | None) -> None:
    async with (
        RawUpstream([Reply(202, ACCEPTED.headers, ACCEPTED.body, delay=0.5)]) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        await leave(proxy, upstream, request(key))
        again = await send(proxy, request(key))
        later = await send(proxy, request(key))
    for response in (again, later):
        assert (response.status, response.body) == (202, ACCEPTED.body)
        assert response.values("idempotency-replayed") == [b"true"]
        assert response.values("x-job") == [b"1"]
    assert later.values("set-cookie") == []
    assert len(upstream.requests) == 1
    assert outcomes(proxy) == {"joined": 1, "replayed": 1}


async def test_same_again_after_a_lost_answer_is_in_doubt() -> None:
    async with (
        RawUpstream([ReadThenReset()], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        first = await send(proxy, request())
        again = await send(proxy, request(request_id="second"))
        with_key = await send(proxy, request("another"))
        other_body = await send(proxy, request(body=b"{}"))
    assert [name(one) for one in (first, again)] == ["outcome-unknown", "in-doubt"]
    assert again.status == 409
    assert again.values("retry-after") == []
    document = json.loads(again.body)
    assert document["first_request_id"] == "first"
    assert document["until"] - document["sent_at"] == pytest.approx(120, abs=5)
    assert [one.status for one in (with_key, other_body)] == [202, 202]
    assert len(upstream.requests) == 3
    assert outcomes(proxy) == {"in_doubt": 1}


@pytest.mark.parametrize("status", [502, 504])
async def test_api_that_answers_for_a_server_behind_it_leaves_doubt(status: int) -> None:
    async with (
        RawUpstream([Reply(status)], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        first = await send(proxy, request("k"))
        again = [await send(proxy, request("k")), await send(proxy, request())]
    assert first.status == status
    assert [name(one) for one in again] == ["in-doubt", "in-doubt"]
    assert len(upstream.requests) == 1


async def test_equal_requests_whose_callers_are_there_are_sent_each() -> None:
    """Two equal exports may be meant."""
    async with (
        RawUpstream(default=Reply(202, delay=0.3)) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        responses = await asyncio.gather(*(send(proxy, request()) for _ in range(3)))
        responses.append(await send(proxy, request()))
    assert [one.status for one in responses] == [202] * 4
    assert len(upstream.requests) == 4
    assert outcomes(proxy) == {}


async def test_equal_requests_with_one_key_share_a_send() -> None:
    async with (
        RawUpstream([Reply(202, body=b"1", delay=0.3)]) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        responses = await asyncio.gather(*(send(proxy, request("k")) for _ in range(3)))
        later = await send(proxy, request("k"))
    assert {(one.status, one.body) for one in [*responses, later]} == {(202, b"1")}
    assert len(upstream.requests) == 1
    assert outcomes(proxy) == {"joined": 2, "replayed": 1}


async def test_leader_that_leaves_hands_over_while_it_waits() -> None:
    """The second caller gets the answer of the request that the first began."""
    async with (
        RawUpstream([Reply(202), Reply(202, body=b"shared")]) as upstream,
        proxy_for(upstream.url, pacing={"interval": 1.0}) as proxy,
    ):
        await send(proxy, request(body=b"{}"))
        async with await RawConnection.open(HOST, port_of(proxy.url)) as leader:
            await leader.send(request("k"))
            await until(lambda: _has(lambda: proxy.proxy.handled == 1))
            joined = asyncio.ensure_future(send(proxy, request("k")))
            await until(lambda: _has(lambda: proxy.proxy.handled == 2))
        response = await joined
    assert (response.status, response.body) == (202, b"shared")
    assert len(upstream.requests) == 2


async def _has(question: Callable[[], bool]) -> bool:
    return question()


async def test_caller_that_left_while_it_waited_sent_nothing() -> None:
    async with (
        RawUpstream(default=SECOND) as upstream,
        proxy_for(upstream.url, pacing={"interval": 1.0}) as proxy,
    ):
        await send(proxy, request(body=b"{}"))
        async with await RawConnection.open(HOST, port_of(proxy.url)) as caller:
            await caller.send(request())
            await until(lambda: _has(lambda: proxy.proxy.handled == 1))
        await gone(proxy)
        response = await send(proxy, request())
    assert (response.status, response.values("idempotency-replayed")) == (202, [])
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("step", [Reply(429, [("Retry-After", "0")]), Reply(400), Reply(404)])
async def test_refused_request_leaves_nothing_behind(step: Step) -> None:
    async with (
        RawUpstream([step], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST, retry={"max_attempts": 1}) as proxy,
    ):
        await send(proxy, request("k"))
        again = await send(proxy, request("k"))
    assert (again.status, again.body) == (202, SECOND.body)
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("status", [500, 503])
async def test_other_failures_of_the_api_are_ordinary_answers(status: int) -> None:
    async with (
        RawUpstream([Reply(status, body=b"e")], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        responses = [await send(proxy, request("k")), await send(proxy, request("k"))]
        without = await send(proxy, request())
    assert [(one.status, one.body) for one in responses] == [(status, b"e")] * 2
    assert without.status == 202


async def test_key_of_another_request_is_refused() -> None:
    async with (
        RawUpstream(default=ACCEPTED) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        await send(proxy, request("k"))
        body = await send(proxy, request("k", body=b"{}"))
        target = await send(proxy, request("k", path=f"{EXPORTS}?x=1"))
    assert [(one.status, name(one)) for one in (body, target)] == [(422, "key-reused")] * 2
    assert len(upstream.requests) == 1


async def test_another_caller_never_gets_the_answer_whatever_key_it_guesses() -> None:
    async with (
        RawUpstream([ACCEPTED], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        await send(proxy, request("k"))
        other = await send(proxy, request("k", token="b"))
    assert (other.body, other.values("idempotency-replayed")) == (SECOND.body, [])
    assert len(upstream.requests) == 2


async def test_lost_answer_that_is_too_large_to_keep_is_in_doubt() -> None:
    large = Reply(202, body=b"x" * 200_000, delay=0.3)
    async with (
        RawUpstream([large], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        await leave(proxy, upstream, request())
        await until(lambda: _has(lambda: proxy.proxy.under_way == 0))
        again = await send(proxy, request())
    assert name(again) == "in-doubt"
    assert len(upstream.requests) == 1


async def test_large_answer_is_streamed_to_its_caller() -> None:
    large = Reply(202, body=b"x" * 200_000)
    async with (
        RawUpstream([large], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        responses = [await send(proxy, request()), await send(proxy, request())]
    assert [len(one.body) for one in responses] == [200_000, len(SECOND.body)]


async def test_window_of_nothing_switches_it_off() -> None:
    async with (
        RawUpstream([ReadThenReset()], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST, repeats={"window": 0}) as proxy,
    ):
        await send(proxy, request("k"))
        again = await send(proxy, request("k"))
    assert again.status == 202
    assert len(upstream.requests) == 2


async def test_doubt_ends_with_the_window() -> None:
    async with (
        RawUpstream([ReadThenReset()], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST, repeats={"window": 0.5}) as proxy,
    ):
        await send(proxy, request())
        assert name(await send(proxy, request())) == "in-doubt"
        await until(lambda: _answered(proxy))
    assert len(upstream.requests) == 2


async def _answered(proxy: Running) -> bool:
    return (await send(proxy, request())).status == 202


async def test_answer_of_a_caller_that_left_is_awaited_when_the_proxy_ends() -> None:
    upstream = RawUpstream([Reply(202, body=b"late", delay=1.0)])
    async with upstream:
        async with proxy_for(upstream.url, pacing=FAST) as proxy:
            await leave(proxy, upstream, request())
            flights = proxy.proxy.under_way
        assert (flights, proxy.proxy.under_way) == (1, 0)
    assert upstream.stray == []


async def narrow_connection(proxy: Running) -> RawConnection:
    """Connect as a caller that takes few bytes at once, so that most of an answer waits here."""
    sock = socket.socket()
    sock.setblocking(False)  # noqa: FBT003 -- the socket module's own signature
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await asyncio.get_running_loop().sock_connect(sock, (HOST, port_of(proxy.url)))
    return RawConnection(sock)


@pytest.mark.parametrize("key", [None, "k"])
async def test_answer_that_broke_off_on_the_way_to_its_caller_is_given_again(
    key: str | None,
) -> None:
    whole = Reply(202, body=b"x" * 60_000)
    async with (
        RawUpstream([whole], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        async with await narrow_connection(proxy) as caller:
            await caller.send(request(key))
            begun = await caller.read_some()
            caller.reset()
        await gone(proxy)
        again = await send(proxy, request(key))
        seen = len(upstream.requests)
    assert 0 < len(begun) < 60_000
    assert (again.status, again.body) == (202, whole.body)
    assert again.values("idempotency-replayed") == [b"true"]
    assert seen == 1
    assert outcomes(proxy) == {"replayed": 1}


async def test_slow_caller_that_takes_its_whole_answer_has_it() -> None:
    """The same again is a request of its own."""
    async with (
        RawUpstream([Reply(202, body=b"x" * 60_000)], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
        await narrow_connection(proxy) as caller,
    ):
        await caller.send(request())
        first = await caller.read_response("POST")
        await caller.send(request())
        again = await caller.read_response("POST")
    assert (len(first.body), again.body) == (60_000, SECOND.body)
    assert len(upstream.requests) == 2


async def test_joined_caller_keeps_its_own_shorter_limit() -> None:
    """It is refused in time; the first one goes on."""
    async with (
        RawUpstream(default=SECOND) as upstream,
        proxy_for(upstream.url, pacing={"interval": 3.0}) as proxy,
    ):
        await send(proxy, request(body=b"{}"))
        first = asyncio.ensure_future(send(proxy, request("k")))
        await until(lambda: _has(lambda: proxy.proxy.handled == 1))
        joined = await send(proxy, request("k", wait=1))
        is_first_there = not first.done()
        answer = await first
    assert (joined.status, name(joined)) == (429, "wait-expired")
    assert joined.values("retry-after") != []
    assert is_first_there
    assert (answer.status, len(upstream.requests)) == (202, 2)


async def test_joined_caller_that_can_wait_longer_than_the_first_is_sent() -> None:
    """A hold comes that ends after the limit of the first one, and before that of the others."""
    held = Reply(429, [("Retry-After", "3")], delay=0.5)
    async with (
        RawUpstream([held], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing={"interval": 1.0}) as proxy,
    ):
        other = asyncio.ensure_future(send(proxy, request(body=b"{}")))
        await upstream.received(1)
        first = asyncio.ensure_future(send(proxy, request("k", wait=2)))
        await until(lambda: _has(lambda: proxy.proxy.handled == 2))
        joined = await asyncio.gather(*(send(proxy, request("k")) for _ in range(3)))
        answers = [(await first), (await other)]
    assert [one.status for one in answers] == [429, 202]
    assert {(one.status, one.body) for one in joined} == {(202, SECOND.body)}
    assert len(upstream.requests) == 3
    assert outcomes(proxy)["joined"] >= 3


async def test_joined_caller_whose_limit_ends_after_the_send_gets_the_answer() -> None:
    """The limit is for the wait before the send."""
    async with (
        RawUpstream([Reply(202, body=b"late", delay=2.0)]) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        first = asyncio.ensure_future(send(proxy, request("k")))
        await upstream.received(1)
        joined = await send(proxy, request("k", wait=1))
        await first
    assert (joined.status, joined.body) == (202, b"late")
    assert len(upstream.requests) == 1


async def test_get_is_never_recognised() -> None:
    """Only unsafe methods are."""
    get = request("k", body=b"").replace(b"POST", b"GET", 1)
    async with (
        RawUpstream(default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        answers = [await send(proxy, get) for _ in range(2)]
    assert [one.values("idempotency-replayed") for one in answers] == [[], []]
    assert len(upstream.requests) == 2


async def test_routes_that_are_not_paced_recognise_nothing() -> None:
    async with (
        RawUpstream([ReadThenReset()], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        path = "/api/v2/users/search"
        first = await send(proxy, request("k", path=path))
        again = await send(proxy, request("k", path=path))
    assert (name(first), again.status) == ("outcome-unknown", 202)
    assert len(upstream.requests) == 2


async def test_same_token_from_another_address_is_another_caller() -> None:
    async with (
        RawUpstream([ReadThenReset()], default=SECOND) as upstream,
        proxy_for(upstream.url, pacing=FAST) as proxy,
    ):
        await send(proxy, request())
        sock = socket.create_connection((HOST, port_of(proxy.url)), source_address=("127.0.0.2", 0))
        sock.setblocking(False)  # noqa: FBT003 -- the socket module's own signature
        async with RawConnection(sock) as elsewhere:
            await elsewhere.send(request())
            answer = await elsewhere.read_response("POST")
        here = await send(proxy, request())
    assert (answer.status, answer.body) == (202, SECOND.body)
    assert name(here) == "in-doubt"
    assert len(upstream.requests) == 2
