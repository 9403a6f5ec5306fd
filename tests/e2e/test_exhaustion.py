"""A caller that is slow, or opens too many connections, is let go; the others do not notice.

CWE-400, CWE-770; the attacks are those of slowhttptest (slow headers, slow body, slow read).
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.service.lifecycle import Running
from tests.kit.client import RawConnection, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.process import SERVE, Process, document_for, serving, until
from tests.kit.proxy import proxy_for
from tests.kit.upstream import RawUpstream, Reply

USERS = "/api/v2/users/me"
GET = f"GET {USERS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a\r\n\r\n".encode()
BIG = Reply(200, body=b"x" * 20_000_000)  # far more than all buffers hold
SLOW_CALLERS = 200
DEADLINE = 2.0


async def open_from(peer: str, port: int) -> RawConnection:
    """Connect from an address of loopback's many."""
    sock = socket.socket()
    sock.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    sock.bind((peer, 0))
    await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
    return RawConnection(sock)


async def is_served(connection: RawConnection) -> bool:
    """Whether a request is answered; else the connection closes without a byte."""
    await connection.send(GET)
    raw = await connection.read_raw()
    return bool(raw) and parse_response(raw).status == 200


# Connections


async def test_connections_are_capped_for_each_peer_and_in_all() -> None:
    """What is open goes on; one too many is closed; a place that is left is taken again."""
    limits = {"max_connections": 6, "max_connections_per_peer": 4}
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits=limits) as proxy,
        AsyncExitStack() as stack,
    ):

        async def connect(peer: str) -> RawConnection:
            connection = await open_from(peer, port_of(proxy.url))
            return await stack.enter_async_context(connection)

        first = [await connect("127.0.0.1") for _ in range(4)]
        assert [await is_served(one) for one in first] == [True] * 4
        assert not await is_served(await connect("127.0.0.1"))
        others = [await connect("127.0.0.2") for _ in range(2)]
        assert [await is_served(one) for one in others] == [True] * 2
        assert not await is_served(await connect("127.0.0.3"))
        assert [await is_served(one) for one in (*first, *others)] == [True] * 6
        others[0].close()

        async def has_room() -> bool:
            return await is_served(await connect("127.0.0.3"))

        await until(has_room)
        assert not await is_served(await connect("127.0.0.1"))


async def test_the_admin_port_has_connections_of_its_own() -> None:
    limits = {"max_connections": 1, "max_connections_per_peer": 1}
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits=limits) as proxy,
        AsyncExitStack() as stack,
    ):
        assert await is_served(
            await stack.enter_async_context(await open_from(HOST, port_of(proxy.url)))
        )
        port = port_of(proxy.admin_url)
        assert parse_response(await exchange(HOST, port, ask)).status == 200
        for _ in range(60):
            await stack.enter_async_context(await open_from(HOST, port))
        assert parse_response(await exchange(HOST, port, ask)).status == 200


async def test_the_admin_port_has_a_bounded_number_of_connections() -> None:
    """The oldest that asks nothing makes room for the newest, so health is always answered."""
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url) as proxy,
        AsyncExitStack() as stack,
    ):
        port = port_of(proxy.admin_url)
        held = [await stack.enter_async_context(await open_from(HOST, port)) for _ in range(25)]
        assert await held[0].read_to_close() == b""
        with pytest.raises(TimeoutError):
            await held[1].read_some(timeout=0.2)


# Bytes that are kept


async def test_one_address_cannot_take_all_the_room_for_bodies() -> None:
    """The last tenth is kept for addresses that hold little."""
    limits = {"max_body": 100_000, "max_buffered": 1_000_000, "body_timeout": 30}
    part = (
        f"POST {USERS} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %d\r\n"
        "Content-Length: 100000\r\n\r\n"
    )
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits=limits) as proxy,
        AsyncExitStack() as stack,
    ):
        port = port_of(proxy.url)
        for number in range(12):
            greedy = await stack.enter_async_context(await open_from("127.0.0.2", port))
            await greedy.send((part % number).encode() + b"x" * 99_000)

        async def is_full() -> bool:
            return proxy.proxy.bodies.room.taken > 850_000

        await until(is_full)
        honest = await stack.enter_async_context(await open_from("127.0.0.3", port))
        await honest.send((part % 99).encode() + b"x" * 100_000)
        assert (await honest.read_response("POST")).status == 200


# Slow heads


@pytest.mark.parametrize(
    "start",
    [b"", b"GET / HTTP/1.1\r\nX-Slow: ", GET],
    ids=["nothing", "dripping", "the second head"],
)
async def test_a_head_that_does_not_end_is_closed_unanswered(start: bytes) -> None:
    """Dripping does not prolong the time, be it the first request or the next."""
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits={"header_timeout": 1.5}) as proxy,
    ):
        await drip(start, port_of(proxy.url))


async def drip(start: bytes, port: int) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with await RawConnection.open(HOST, port) as caller:
        await caller.send(start)
        if start == GET:
            assert (await caller.read_response()).status == 200
            await caller.send(b"GET / HTTP/1.1\r\nX-Slow: ")
        closed = loop.create_task(caller.read_to_close())
        while not closed.done():
            await caller.send(b"x" if start else b"")
            await asyncio.wait([closed], timeout=0.05)
        assert closed.result() == b""
        assert loop.time() - begun >= 1.5


async def test_a_slow_head_of_the_admin_port_is_closed() -> None:
    async with (
        RawUpstream() as upstream,
        proxy_for(upstream.url, limits={"header_timeout": 0.3}) as proxy,
        await RawConnection.open(HOST, port_of(proxy.admin_url)) as caller,
    ):
        await caller.send(b"GET /metrics HTTP/1.1\r\n")
        assert await caller.read_to_close() == b""


# Slow readers


@asynccontextmanager
async def big_answers(*, response_timeout: float) -> AsyncIterator[tuple[RawUpstream, Running]]:
    upstream_settings = {"response_timeout": response_timeout}
    async with (
        RawUpstream(default=BIG) as upstream,
        proxy_for(upstream.url, upstream=upstream_settings) as proxy,
    ):
        yield upstream, proxy


async def test_a_caller_that_does_not_read_its_answer_is_let_go() -> None:
    """And with it the API's connection: neither is held for longer than a silence may last."""
    async with (
        big_answers(response_timeout=2) as (_, proxy),
        await RawConnection.open(HOST, port_of(proxy.url)) as caller,
    ):
        await caller.send(GET)

        async def is_gone() -> bool:
            return proxy.proxy.under_way == 0 and not proxy.proxy.listener.connections

        await asyncio.sleep(0.3)
        assert not await is_gone()
        await until(is_gone)
        raw = await caller.read_to_close()
        assert caller.was_reset
        assert len(raw) < len(BIG.body)


async def test_a_caller_that_does_not_read_small_answers_is_let_go() -> None:
    """What the caller left in the buffers does not keep a closed connection alive."""
    async with (
        RawUpstream(default=Reply(200, body=b"x" * 50_000)) as upstream,
        proxy_for(
            upstream.url, upstream={"response_timeout": 1.5}, limits={"header_timeout": 1.5}
        ) as proxy,
    ):
        caller = socket.socket()
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        await asyncio.get_running_loop().sock_connect(caller, (HOST, port_of(proxy.url)))
        await asyncio.get_running_loop().sock_sendall(caller, GET)
        await upstream.received()

        async def is_gone() -> bool:
            return not proxy.proxy.listener.connections

        await until(is_gone)
        caller.close()


async def test_a_caller_that_reads_slowly_but_steadily_gets_all() -> None:
    loop = asyncio.get_running_loop()
    async with big_answers(response_timeout=1.5) as (_, proxy):
        with socket.socket() as caller:
            caller.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            await loop.sock_connect(caller, (HOST, port_of(proxy.url)))
            await loop.sock_sendall(caller, GET.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n"))
            raw, begun = bytearray(), loop.time()
            while part := await loop.sock_recv(caller, 2**18):
                raw += part
                if loop.time() - begun < 3:
                    await asyncio.sleep(0.1)
    assert parse_response(bytes(raw)).body == BIG.body


async def test_the_program_lets_a_caller_go_that_does_not_read(tmp_path: Path) -> None:
    """On its own event loop, which is another than the tests'."""
    async with RawUpstream(default=BIG) as upstream:
        document = document_for(upstream.url, upstream={"response_timeout": 2})
        async with (
            serving(tmp_path, document) as proxy,
            await RawConnection.open(HOST, proxy.port) as caller,
        ):
            await caller.send(GET)

            async def is_given_up() -> bool:
                return bool(proxy.logged("request"))

            await until(is_given_up)
            raw = await caller.read_to_close()
            assert caller.was_reset
    assert len(raw) < len(BIG.body)


# A tool made for it


async def attack(port: int, *options: str) -> str:
    """Run slowhttptest with 200 connections until it has none left; what it says of them."""
    tool = await asyncio.create_subprocess_exec(
        *("slowhttptest", "-u", f"http://{HOST}:{port}{USERS}", "-c", str(SLOW_CALLERS)),
        *("-r", str(SLOW_CALLERS), "-i", "1", "-l", "15", "-p", "5", "-v", "1", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await tool.communicate()
    return said.decode()


# The tool has no option for Authorization, and writes a cookie as it is given.
AS_SOMEBODY = ("-j", "a=b\r\nAuthorization: Bearer a")


@pytest.mark.needs("slowhttptest")
@pytest.mark.parametrize(
    "options",
    [("-H",), ("-B", "-s", "8192", *AS_SOMEBODY)],
    ids=["slow headers", "slow body"],
)
async def test_slow_callers_are_closed_by_their_deadline(
    options: Sequence[str], tmp_path: Path
) -> None:
    """All of two hundred, while everybody else is answered as before."""
    limits = {"header_timeout": DEADLINE, "body_timeout": DEADLINE}
    async with (
        RawUpstream() as upstream,
        serving(tmp_path, document_for(upstream.url, limits=limits)) as proxy,
    ):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        attacking = loop.create_task(attack(proxy.port, *options))
        statuses = []
        while not attacking.done():
            statuses.append(parse_response(await exchange(HOST, proxy.port, GET)).status)
            await asyncio.wait([attacking], timeout=0.05)
        took = loop.time() - begun
    assert "No open connections left" in attacking.result(), attacking.result()
    assert set(statuses) == {200}
    assert DEADLINE - 0.5 < took < 4 * DEADLINE
    assert len(statuses) > 5


# File descriptors


@pytest.mark.needs("prlimit")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_too_few_descriptors_for_too_many_callers(loop: str, tmp_path: Path) -> None:
    """64 descriptors and 200 connections: it lives, says little, and recovers at once."""
    without_uvloop = (
        "import sys; sys.modules['uvloop'] = None; from proxy.cli.commands import main; main()"
    )
    program = {
        "uvloop": SERVE,
        "asyncio": (sys.executable, "-c", without_uvloop, "serve", "--config"),
    }[loop]
    async with (
        RawUpstream() as upstream,
        serving(
            tmp_path,
            document_for(upstream.url),
            command=("prlimit", "--nofile=64:64", *program),
        ) as proxy,
    ):
        assert proxy.logged("too few file descriptors: connections are limited")
        await check_crowd(proxy)


async def check_crowd(proxy: Process) -> None:
    loop = asyncio.get_running_loop()
    lines, begun = len(proxy.log), loop.time()
    async with AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(await RawConnection.open(HOST, proxy.port))
            for _ in range(200)
        ]
        healthy = []
        for _ in range(10):
            healthy.append((await proxy.ask("/healthz")).status)
            await asyncio.sleep(0.1)
        served = [one for one in crowd[:10] if await is_served(one)]
    assert healthy == [200] * 10
    assert served, "those who came first are served"
    seconds = loop.time() - begun
    requests = len(proxy.logged("request"))
    assert len(proxy.log) - lines - requests <= 10 * seconds

    async def has_room() -> bool:
        async with await RawConnection.open(HOST, proxy.port) as one:
            return await is_served(one)

    await until(has_room)
    statuses = [parse_response(await exchange(HOST, proxy.port, GET)).status for _ in range(20)]
    assert statuses == [200] * 20
    assert (await proxy.ask("/readyz")).status == 200
