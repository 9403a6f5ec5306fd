"""No doubles over two replicas with one Redis."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.admin import status_page
from proxy.service.lifecycle import Running
from tests.e2e.test_repeats import (
    ACCEPTED,
    BODY,
    FAST,
    SECOND,
    gone,
    leave,
    name,
    narrow_connection,
    request,
    send,
)
from tests.kit.client import RawConnection, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import proxy_for
from tests.kit.redis import RedisServer, redis_server
from tests.kit.upstream import RawUpstream, ReadThenReset, Reply, Step

pytestmark = pytest.mark.needs("redis-server")


@asynccontextmanager
async def replicas(
    folder: Path, *steps: Step, pacing: Mapping[str, float] = FAST
) -> AsyncIterator[tuple[RedisServer, RawUpstream, Sequence[Running]]]:
    async with (
        redis_server(folder) as server,
        RawUpstream(steps, default=SECOND) as upstream,
        AsyncExitStack() as stack,
    ):
        store = {"url": server.url, "replicas": 2}
        running = [
            await stack.enter_async_context(proxy_for(upstream.url, pacing=pacing, store=store))
            for _ in range(2)
        ]
        yield server, upstream, running


@pytest.mark.parametrize("key", [None, "k-1"])
async def test_answer_of_a_caller_that_left_is_given_by_the_other_replica(
    key: str | None, tmp_path: Path
) -> None:
    """While it is read, and after."""
    late = Reply(202, body=ACCEPTED.body, delay=0.5)
    async with replicas(tmp_path, late) as (_, upstream, (here, there)):
        await leave(here, upstream, request(key))
        responses = [await send(there, request(key)) for _ in range(2)]
    for response in responses:
        assert (response.status, response.body) == (202, ACCEPTED.body)
        assert response.values("idempotency-replayed") == [b"true"]
    assert len(upstream.requests) == 1


async def test_lost_answer_is_in_doubt_at_both_replicas(tmp_path: Path) -> None:
    async with replicas(tmp_path, ReadThenReset()) as (_, upstream, (here, there)):
        first = await send(here, request("k"))
        again = [await send(one, request(key)) for one in (here, there) for key in ("k", None)]
    assert name(first) == "outcome-unknown"
    assert [name(one) for one in again] == ["in-doubt"] * 4
    assert len(upstream.requests) == 1


async def test_requests_with_one_key_share_a_send_over_both_replicas(tmp_path: Path) -> None:
    async with replicas(tmp_path, Reply(202, body=b"1", delay=0.5)) as (_, upstream, both):
        responses = await asyncio.gather(*(send(one, request("k")) for one in [*both, *both]))
        later = [await send(one, request("k")) for one in both]
        reused = [await send(one, request("k", body=b"{}")) for one in both]
    assert {(one.status, one.body) for one in [*responses, *later]} == {(202, b"1")}
    assert [name(one) for one in reused] == ["key-reused"] * 2
    assert len(upstream.requests) == 1


async def test_refused_request_leaves_nothing_behind_at_either_replica(tmp_path: Path) -> None:
    async with replicas(tmp_path, Reply(400)) as (_, upstream, (here, there)):
        await send(here, request("k"))
        again = await send(there, request("k"))
    assert again.status == 202
    assert len(upstream.requests) == 2


async def test_caller_that_left_while_it_waited_leaves_nothing_at_either_replica(
    tmp_path: Path,
) -> None:
    async with replicas(tmp_path, pacing={"interval": 2.0}) as (_, upstream, (here, there)):
        await send(here, request(body=b"{}"))
        async with await RawConnection.open(HOST, port_of(here.url)) as caller:
            await caller.send(request("k"))
            await until(lambda: _has(lambda: here.proxy.handled == 1))
        await gone(here)
        again = [await send(one, request("k")) for one in (there, here)]
    assert [one.status for one in again] == [202, 202]
    assert [one.values("idempotency-replayed") for one in again] == [[], [b"true"]]
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("status", [502, 504])
async def test_api_that_answers_for_a_server_behind_it_leaves_doubt_at_both_replicas(
    status: int, tmp_path: Path
) -> None:
    async with replicas(tmp_path, Reply(status)) as (_, upstream, (here, there)):
        first = await send(here, request())
        again = [await send(one, request()) for one in (there, here)]
    assert first.status == status
    assert [name(one) for one in again] == ["in-doubt", "in-doubt"]
    assert len(upstream.requests) == 1


async def test_lost_answer_that_is_too_large_to_keep_is_in_doubt_at_both_replicas(
    tmp_path: Path,
) -> None:
    large = Reply(202, body=b"x" * 200_000, delay=0.3)
    async with replicas(tmp_path, large) as (_, upstream, (here, there)):
        await leave(here, upstream, request())
        await until(lambda: _has(lambda: here.proxy.under_way == 0))
        again = [await send(one, request()) for one in (there, here)]
    assert [name(one) for one in again] == ["in-doubt", "in-doubt"]
    assert len(upstream.requests) == 1


async def test_another_key_is_sent_by_the_other_replica(tmp_path: Path) -> None:
    """After a lost answer: the caller has looked, and wants it once more."""
    async with replicas(tmp_path, ReadThenReset()) as (_, upstream, (here, there)):
        first = await send(here, request("k"))
        other = await send(there, request("another"))
        again = [await send(one, request("another")) for one in (here, there)]
    assert name(first) == "outcome-unknown"
    assert {(one.status, one.body) for one in [other, *again]} == {(202, SECOND.body)}
    assert len(upstream.requests) == 2


async def test_answer_that_broke_off_is_given_again_by_the_other_replica(tmp_path: Path) -> None:
    whole = Reply(202, body=b"x" * 60_000)
    async with replicas(tmp_path, whole) as (_, upstream, (here, there)):
        async with await narrow_connection(here) as caller:
            await caller.send(request())
            await caller.read_some()
            caller.reset()
        await gone(here)
        again = await send(there, request())
        seen = len(upstream.requests)
    assert (again.status, again.body) == (202, whole.body)
    assert again.values("idempotency-replayed") == [b"true"]
    assert seen == 1


async def test_replica_that_knows_never_sends_again_while_the_store_is_full(
    tmp_path: Path,
) -> None:
    """It says that it recognises only its own."""
    async with replicas(tmp_path, ReadThenReset(), ReadThenReset()) as (server, upstream, both):
        here, _ = both
        await send(here, request())
        await server.client.config_set("maxmemory-policy", "noeviction")
        await server.client.config_set("maxmemory", 1)
        again = await send(here, request())
        other = [await send(here, request(body=b"{}")) for _ in range(2)]
        await until(lambda: _says_that_the_store_is_down(here))
        later = [await send(here, request(body=body)) for body in (BODY, b"{}")]
        seen = len(upstream.requests)
    assert name(again) == "in-doubt"
    assert [name(one) for one in other] == ["outcome-unknown", "in-doubt"]
    assert [name(one) for one in later] == ["in-doubt", "in-doubt"]
    assert seen == 2


async def _says_that_the_store_is_down(proxy: Running) -> bool:
    asked = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    raw = await exchange(HOST, port_of(proxy.admin_url), asked)
    return json.loads(parse_response(raw).body)["store_up"] is False


async def _has(question: Callable[[], bool]) -> bool:
    return question()


@pytest.mark.parametrize("trouble", ["stop", "flush"])
async def test_replica_that_knows_never_sends_again_whatever_the_store_does(
    trouble: str, tmp_path: Path
) -> None:
    async with replicas(tmp_path, ReadThenReset()) as (server, upstream, (here, _)):
        await send(here, request())
        await getattr(server, trouble)()
        again = await send(here, request())
    assert name(again) == "in-doubt"
    assert len(upstream.requests) == 1


async def test_store_knows_neither_token_nor_key_nor_body(tmp_path: Path) -> None:
    planted = [b"s3cr3t-token", b"s3cr3t-key", b"s3cr3t-body"]
    secret = request("s3cr3t-key", token="s3cr3t-token", body=b'{"a": "s3cr3t-body"}')
    async with replicas(tmp_path, Reply(202, delay=0.3)) as (server, upstream, (here, there)):
        await leave(here, upstream, secret)
        await gone(here)
        texts = [repr(await server.everything())]
        await send(there, secret)
        texts.append(repr(await server.everything()))
    assert "repeat:" in texts[0]
    for text in texts:
        assert [word for word in planted if word.decode() in text] == []


def test_status_page_says_that_recognition_is_local_while_the_store_is_down() -> None:
    page = status_page.page().body
    assert b"store down: this replica recognises only its own repeats" in page
