"""Each fault as a client of the fault proxy meets it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.kit.client import RawConnection, exchange, parse_response
from tests.kit.clock import FakeClock
from tests.kit.fault_proxy import (
    BlackHole,
    Delay,
    FaultProxy,
    HalfClose,
    ResetAfter,
    ResetOnConnect,
    TruncateAfter,
)
from tests.kit.listener import HOST
from tests.kit.upstream import RawUpstream, ReadThenReset, Reply, free_port

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    async with RawUpstream(default=Reply(body=b"hi")) as upstream:
        yield upstream


@pytest.fixture
async def faults(upstream: RawUpstream) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(upstream.port) as faults:
        yield faults


@pytest.fixture
async def client(faults: FaultProxy) -> AsyncIterator[RawConnection]:
    async with await RawConnection.open(HOST, faults.port) as client:
        yield client


async def test_bytes_pass_and_connections_are_counted(faults: FaultProxy) -> None:
    for _ in range(2):
        assert await exchange(HOST, faults.port, GET) == ANSWER
    assert faults.connections == 2


async def test_a_half_closed_client_still_gets_its_answer(faults: FaultProxy) -> None:
    assert await exchange(HOST, faults.port, GET, half_close=True) == ANSWER


async def test_a_delay_holds_each_piece_in_either_direction(upstream: RawUpstream) -> None:
    clock = FakeClock()
    async with (
        asyncio.timeout(5),
        FaultProxy(upstream.port, Delay(1), clock=clock) as faults,
        asyncio.TaskGroup() as tasks,
    ):
        answer = tasks.create_task(exchange(HOST, faults.port, GET))
        while not clock.pending:
            await clock.advance(0)
        await clock.advance(0.9)
        assert upstream.requests == []
        await clock.advance(0.1)
        await upstream.received()
        while not clock.pending:
            await clock.advance(0)
        assert not answer.done()
        await clock.advance(1)
        assert await answer == ANSWER


async def test_reset_on_connect(faults: FaultProxy, upstream: RawUpstream) -> None:
    faults.mode = ResetOnConnect()
    async with await RawConnection.open(HOST, faults.port) as client:
        assert await client.read_to_close() == b""
        assert client.was_reset
    assert upstream.connections == 0


@pytest.mark.parametrize("mode", [ResetAfter(20), TruncateAfter(20)])
async def test_so_many_bytes_pass_before_the_end(
    faults: FaultProxy, client: RawConnection, mode: ResetAfter | TruncateAfter
) -> None:
    faults.mode = mode
    await client.send(GET)
    assert await client.read_to_close() == ANSWER[:20]
    assert client.was_reset == isinstance(mode, ResetAfter)


async def test_a_fault_may_come_to_an_open_connection(
    faults: FaultProxy, client: RawConnection
) -> None:
    await client.send(GET)
    assert (await client.read_response()).status == 200
    faults.mode = TruncateAfter(len(ANSWER) + 5)
    await client.send(GET)
    assert await client.read_to_close() == ANSWER[:5]


async def test_half_close(faults: FaultProxy, upstream: RawUpstream) -> None:
    faults.mode = HalfClose()
    async with await RawConnection.open(HOST, faults.port) as client:
        assert await client.read_to_close() == b""
        await client.send(GET)
        await upstream.received()
    assert not client.was_reset


async def test_a_black_hole_swallows_new_connections_and_open_ones(
    faults: FaultProxy, upstream: RawUpstream, client: RawConnection
) -> None:
    await client.send(GET)
    await client.read_response()
    faults.mode = BlackHole()
    async with await RawConnection.open(HOST, faults.port) as other:
        for connection in (client, other):
            await connection.send(GET)
            with pytest.raises(TimeoutError):
                await connection.read_to_close(timeout=0.02)
    assert (upstream.connections, len(upstream.requests)) == (1, 1)


async def test_reset_all(faults: FaultProxy, client: RawConnection) -> None:
    await client.send(GET)
    await client.read_response()
    faults.reset_all()
    assert await client.read_to_close() == b""
    assert client.was_reset


async def test_a_server_that_resets_or_is_down_resets_the_client() -> None:
    async with RawUpstream([ReadThenReset()]) as upstream:
        for port in (upstream.port, free_port()):
            async with (
                FaultProxy(port) as faults,
                await RawConnection.open(HOST, faults.port) as client,
            ):
                await client.send(GET)
                assert await client.read_to_close() == b""
                assert client.was_reset


async def test_an_answer_larger_than_any_buffer_passes_whole() -> None:
    body = b"x" * 5_000_000
    async with (
        RawUpstream([Reply(body=body, close_after=True)]) as upstream,
        FaultProxy(upstream.port) as faults,
    ):
        assert parse_response(await exchange(HOST, faults.port, GET)).body == body
