"""No doubles over two replicas with one Redis."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.admin import status_page
from proxy.service.lifecycle import Running
from tests.e2e.test_repeats import ACCEPTED, FAST, SECOND, gone, leave, name, request, send
from tests.kit.proxy import proxy_for
from tests.kit.redis import RedisServer, redis_server
from tests.kit.upstream import RawUpstream, ReadThenReset, Reply, Step

pytestmark = pytest.mark.needs("redis-server")


@asynccontextmanager
async def replicas(
    folder: Path, *steps: Step
) -> AsyncIterator[tuple[RedisServer, RawUpstream, Sequence[Running]]]:
    async with (
        redis_server(folder) as server,
        RawUpstream(steps, default=SECOND) as upstream,
        AsyncExitStack() as stack,
    ):
        store = {"url": server.url, "replicas": 2}
        running = [
            await stack.enter_async_context(proxy_for(upstream.url, pacing=FAST, store=store))
            for _ in range(2)
        ]
        yield server, upstream, running


@pytest.mark.parametrize("key", [None, "k-1"])
async def test_answer_of_a_caller_who_left_is_given_by_the_other_replica(
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
    page = status_page.page().text
    assert page is not None
    assert "store down: repeats are recognised by this replica only" in page
