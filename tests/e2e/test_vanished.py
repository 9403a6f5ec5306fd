"""A caller that vanishes without a word: a network that forgot its connection, or lost its power.

The network is a real one: a namespace of the kernel's, whose way back is a black hole.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from tests.kit.client import port_of
from tests.kit.process import until
from tests.kit.proxy import TOKEN, accounts_of, proxy_for
from tests.kit.stalls import noting_stalls
from tests.kit.upstream import RawUpstream

# RFC 2544: for tests of networks. Two runs on one machine have networks of their own.
NETWORK = ip_network("198.18.0.0/15")[4 * (os.getpid() % 2**15)]
HERE, THERE = str(NETWORK + 1), str(NETWORK + 2)
WAITING = "POST /api/v2/recordings/exports HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\n"
CALLER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as caller:
    caller.sendall(sys.stdin.buffer.read(int(sys.argv[3])))
    caller.recv(1)
"""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A host of its own at `THERE`; this one is `HERE` for it."""

    name: str

    async def call(self, port: int, data: bytes) -> asyncio.subprocess.Process:
        """Send that from there, and wait for an answer."""
        caller = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.name, sys.executable, "-c", CALLER),
            *(HERE, str(port), str(len(data))),
            stdin=subprocess.PIPE,
        )
        assert caller.stdin is not None
        caller.stdin.write(data)
        await caller.stdin.drain()
        return caller

    async def lose_the_way_back(self) -> None:
        """What it sends is lost from now on, and nobody hears of it."""
        await asyncio.to_thread(ip, "-n", self.name, "route", "add", "blackhole", f"{HERE}/32")


def ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    name, link = f"caller-{os.getpid()}", f"c{os.getpid()}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError:
        pytest.skip("needs the right to make a network namespace")
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", f"{HERE}/30", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", name, "address", "add", f"{THERE}/30", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield Elsewhere(name)
    finally:
        ip("netns", "delete", name)


@pytest.mark.timed
@pytest.mark.needs("ip", "ss")
async def test_a_caller_behind_a_black_hole_leaves_the_queue_within_a_minute(
    elsewhere: Elsewhere,
) -> None:
    """However long an answer may take: `response_timeout` bounds who is answered, not who waits."""
    async with (
        RawUpstream() as upstream,
        proxy_for(
            upstream.url,
            listen={"host": "0.0.0.0"},
            upstream={"response_timeout": 600},
            pacing={"interval": 600},
        ) as proxy,
    ):
        port = port_of(proxy.url)
        request = f"{WAITING.format(TOKEN)}Content-Length: 1\r\n\r\n2".encode()
        caller = await elsewhere.call(port, request)

        async def depth() -> int:
            accounts = (await accounts_of(proxy)).values()
            return sum(queue["queue_depth"] for one in accounts for queue in one["routes"])

        async def is_waiting() -> bool:
            return await depth() == 1

        async def is_gone() -> bool:
            return await depth() == 0

        try:
            await until(is_waiting)
            shown = await asyncio.to_thread(ss, port)
            assert "timer:(keepalive," in shown
            async with noting_stalls() as stalls:
                await elsewhere.lose_the_way_back()
                begun = asyncio.get_running_loop().time()
                await until(is_gone, within=90)
                seconds = asyncio.get_running_loop().time() - begun
            assert 25 < seconds < 60 + stalls.total
        finally:
            with contextlib.suppress(ProcessLookupError):  # its own kernel has given up
                caller.kill()
            await caller.wait()


def ss(port: int) -> str:
    """What the kernel says of the connection from elsewhere."""
    words = ("ss", "-tnoH", "sport", f"= :{port}", "and", "dst", THERE)
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
