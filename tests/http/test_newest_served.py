"""A port on which the newest connection is served, whoever holds the others: on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from proxy.http.listener import NewestServed
from tests.http.test_listener import GET, Served, served
from tests.kit.client import RawConnection
from tests.kit.listener import HOST
from tests.kit.process import until

PLACES = 3
MUCH = 30_000_000  # bytes, far more than all buffers hold


@asynccontextmanager
async def crowded(**limits: Any) -> AsyncIterator[tuple[Served, AsyncExitStack]]:
    """A port with three places, and what closes its callers."""
    async with (
        served(kind=NewestServed, max_connections=PLACES, **limits) as server,
        AsyncExitStack() as stack,
    ):
        yield server, stack


async def connect(server: Served, stack: AsyncExitStack) -> RawConnection:
    return await stack.enter_async_context(await RawConnection.open(HOST, server.port))


async def ask(server: Served, stack: AsyncExitStack) -> RawConnection:
    """Connect and send a request, which the handler has when this returns."""
    before = len(server.seen)
    caller = await connect(server, stack)
    await caller.send(GET % (before + 1))

    async def is_seen() -> bool:
        return len(server.seen) > before

    await until(is_seen)
    return caller


async def test_the_oldest_connection_that_asks_nothing_gives_way() -> None:
    async with crowded() as (server, stack):
        server.may_answer.clear()
        busy = await ask(server, stack)
        idle = [await connect(server, stack) for _ in range(PLACES - 1)]
        newest = await ask(server, stack)
        assert await idle[0].read_to_close() == b""
        server.may_answer.set()
        assert [(await one.read_response()).status for one in (busy, newest)] == [200, 200]
        await idle[1].send(GET % 9)
        assert (await idle[1].read_response()).status == 200
    assert server.cancelled == 0
    assert server.refused == []


async def test_where_all_are_asked_something_the_oldest_gives_way() -> None:
    """Its handler is cancelled, and the newest is answered."""
    async with crowded() as (server, stack):
        server.may_answer.clear()
        busy = [await ask(server, stack) for _ in range(PLACES)]
        newest = await ask(server, stack)
        assert await busy[0].read_to_close() == b""
        server.may_answer.set()
        statuses = [(await one.read_response()).status for one in (*busy[1:], newest)]
    assert statuses == [200] * PLACES
    assert server.cancelled == 1


@pytest.mark.parametrize("last", [False, True], ids=["a connection that stays", "a last answer"])
async def test_an_answer_that_is_not_taken_holds_no_place_against_the_newest(*, last: bool) -> None:
    """Nor more memory than there are places: one beyond them is broken off, even while it ends."""
    fields = b"Host: h\r\nConnection: close" if last else b"Host: h"
    async with crowded() as (server, stack):
        server.padding = b"x" * MUCH
        takers = []
        for number in range(PLACES + 1):
            takers.append(await connect(server, stack))
            await takers[-1].send((GET % number).replace(b"Host: h", fields))

            async def is_answered(count: int = number + 1) -> bool:
                return len(server.seen) == count

            await until(is_answered)
        assert server.listener.connections == PLACES
        assert await taken_by(takers[0]) < MUCH
        assert await taken_by(takers[1]) >= MUCH


async def taken_by(caller: RawConnection) -> int:
    """How many bytes come, up to the close or to what is `MUCH`."""
    count = 0
    while count < MUCH and (part := await caller.read_some()):
        count += len(part)
    return count


async def test_a_crowd_that_comes_at_once_leaves_the_newest() -> None:
    async with crowded() as (server, stack):
        callers = await asyncio.gather(*(connect(server, stack) for _ in range(10 * PLACES)))
        newest = await ask(server, stack)
        assert (await newest.read_response()).status == 200
        assert server.listener.connections <= PLACES
        closed = [one for one in callers if await is_closed(one)]
    assert len(closed) == 10 * PLACES + 1 - PLACES


async def is_closed(caller: RawConnection) -> bool:
    try:
        return await caller.read_some(timeout=0.2) == b""
    except TimeoutError:
        return False
