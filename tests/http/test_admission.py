"""Which connections the listen port takes, on real sockets, and how a lost caller is noticed.

RFC 9293 section 3.8.4 (keepalive), RFC 5482 (user timeout).
"""

import asyncio
import contextlib
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.http.tls import tls_context
from proxy.settings import Tls
from tests.http.test_listener import GET, Served, served
from tests.kit.certificates import Authority
from tests.kit.client import RawConnection
from tests.kit.listener import HOST
from tests.kit.process import until


@asynccontextmanager
async def served_by_tls(folder: Path, **limits: Any) -> AsyncIterator[tuple[Served, Authority]]:
    authority = Authority(folder)
    pair = authority.issue("proxy")
    server = Served(**limits)
    context = tls_context(Tls(cert_file=pair.cert_file, key_file=pair.key_file))
    server.port = await server.listener.listen(HOST, 0, backlog=100, tls=context)
    try:
        yield server, authority
    finally:
        await server.listener.close(1)
    assert server.listener.connections == 0


async def become(server: Served, *refused: str) -> None:
    async def are_counted() -> bool:
        return server.refused == [*refused]

    await until(are_counted)


# Connections that are not taken


async def test_a_connection_above_the_limit_is_refused_for_it() -> None:
    async with (
        served(max_connections=2) as server,
        await RawConnection.open(HOST, server.port) as first,
        await RawConnection.open(HOST, server.port) as second,
    ):
        for caller in (first, second):
            await caller.send(GET % 1)
            assert (await caller.read_response()).status == 200
        async with await RawConnection.open(HOST, server.port) as third:
            assert await third.read_to_close() == b""
        assert (server.refused, server.listener.connections) == (["limit"], 2)


async def test_a_connection_above_the_bound_of_its_peer_is_refused_for_it() -> None:
    async with (
        served(max_connections_per_peer=1) as server,
        await RawConnection.open(HOST, server.port) as first,
    ):
        await first.send(GET % 1)
        assert (await first.read_response()).status == 200
        async with await RawConnection.open(HOST, server.port) as second:
            assert await second.read_to_close() == b""
        assert server.refused == ["peer"]


@contextmanager
def few_descriptors_left(spare: int) -> Iterator[None]:
    """So many descriptors are free, all above those in use."""
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare + 200, hard))
    try:
        with contextlib.suppress(OSError):
            while not held or held[-1] < lowest + 199:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_connection_that_takes_one_of_the_last_descriptors_is_refused_for_it(
    tmp_path: Path, *, is_tls: bool
) -> None:
    """Files, the admin port and the API find the rest."""
    serving = served_by_tls(tmp_path) if is_tls else served()
    async with serving as found:
        server = found[0] if isinstance(found, tuple) else found
        with few_descriptors_left(20):
            async with await RawConnection.open(HOST, server.port) as caller:
                assert await caller.read_to_close() == b""
        assert server.refused == ["descriptor"]
        async with await RawConnection.open(HOST, server.port):
            await become(server, "descriptor")

            async def is_taken() -> bool:
                return server.listener.connections == 1

            await until(is_taken)


async def test_without_any_descriptor_the_port_waits_and_goes_on(tmp_path: Path) -> None:
    async with served_by_tls(tmp_path) as (server, authority):
        with socket.socket() as caller:
            caller.settimeout(0)
            with few_descriptors_left(0):
                await asyncio.get_running_loop().sock_connect(caller, (HOST, server.port))
                await become(server, "descriptor")
        assert await answer_over_tls(server, authority) == b"/1"


# TLS handshakes


async def answer_over_tls(server: Served, authority: Authority) -> bytes:
    context = ssl.create_default_context(cafile=authority.file)
    reader, writer = await asyncio.open_connection(HOST, server.port, ssl=context)
    writer.write(GET % 1)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head.partition(b"X-Target: ")[2].partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"], ids=["plain HTTP", "a part of a hello"]
)
async def test_a_handshake_that_fails_is_counted(tmp_path: Path, sent: bytes) -> None:
    async with served_by_tls(tmp_path) as (server, authority):
        async with await RawConnection.open(HOST, server.port) as caller:
            await caller.send(sent)
        await become(server, "handshake")
        assert await answer_over_tls(server, authority) == b"/1"
        assert server.refused == ["handshake"]


async def test_a_caller_that_does_not_trust_the_certificate_is_counted(tmp_path: Path) -> None:
    async with served_by_tls(tmp_path) as (server, _):
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(HOST, server.port, ssl=ssl.create_default_context())
        await become(server, "handshake")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["nothing", "a part of a hello"])
async def test_a_handshake_has_the_time_of_a_head_and_is_counted_when_it_is_late(
    tmp_path: Path, sent: bytes
) -> None:
    async with (
        served_by_tls(tmp_path, header_timeout=0.2) as (server, _),
        await RawConnection.open(HOST, server.port) as caller,
    ):
        await caller.send(sent)
        assert await caller.read_to_close() == b""
        await become(server, "handshake")


async def test_a_peer_that_connects_and_leaves_is_no_failed_handshake(tmp_path: Path) -> None:
    """So do the health checks of load balancers."""
    async with served_by_tls(tmp_path) as (server, authority):
        for _ in range(3):
            async with await RawConnection.open(HOST, server.port):
                pass
        assert await answer_over_tls(server, authority) == b"/1"

        async def are_gone() -> bool:
            return server.listener.connections == 0

        await until(are_gone)
        assert server.refused == []


async def test_handshakes_under_way_count_for_the_limit(tmp_path: Path) -> None:
    async with (
        served_by_tls(tmp_path, max_connections=1) as (server, _),
        await RawConnection.open(HOST, server.port) as first,
    ):
        await first.send(b"\x16\x03\x01")

        async def is_counted() -> bool:
            return server.listener.connections == 1

        await until(is_counted)
        async with await RawConnection.open(HOST, server.port) as second:
            assert await second.read_to_close() == b""
        assert server.refused == ["limit"]


async def test_what_is_sent_with_the_end_of_the_handshake_is_read(tmp_path: Path) -> None:
    """A client need not wait: its first request may come in the segment of its Finished."""
    async with served_by_tls(tmp_path) as (server, authority):
        context = ssl.create_default_context(cafile=authority.file)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
        async with await RawConnection.open(HOST, server.port) as caller:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await caller.send(outgoing.read())
                    incoming.write(await caller.read_some())
            tls.write(GET % 7)
            await caller.send(outgoing.read())

            async def is_seen() -> bool:
                return server.seen == ["/7"]

            await until(is_seen)


# Callers that vanish


def option(connection: socket.socket, level: int, name: int) -> int:
    return int(connection.getsockopt(level, name))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux names these options")
@pytest.mark.parametrize("write_timeout", [3.0, 60.0, 600.0])
async def test_a_caller_that_waits_is_probed_and_one_that_is_answered_has_the_write_timeout(
    write_timeout: float,
) -> None:
    """Or else a long `response_timeout` would keep callers in the queue that are long gone."""
    async with (
        served(write_timeout=write_timeout) as server,
        await RawConnection.open(HOST, server.port) as caller,
    ):
        for number in (1, 2):
            server.may_answer.clear()
            await caller.send(GET % number)

            async def is_seen(number: int = number) -> bool:
                return f"/{number}" in server.seen

            await until(is_seen)
            (connection,) = server.listener._connections  # noqa: SLF001 -- the kernel's side of it
            assert connection.transport is not None
            held = connection.transport.get_extra_info("socket")
            tcp = socket.IPPROTO_TCP
            assert option(held, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            probes = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [option(held, tcp, probe) for probe in probes] == [30, 10, 3]
            assert option(held, tcp, socket.TCP_USER_TIMEOUT) == 50_000
            server.may_answer.set()
            answer = await caller.read_response()
            assert option(held, tcp, socket.TCP_USER_TIMEOUT) == 1000 * write_timeout
        assert answer.values("Keep-Alive") == [b"timeout=10"]
