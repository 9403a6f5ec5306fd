"""Ways to a server: its addresses, a forward proxy, and places that nobody may lose."""

import asyncio
import base64
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.clock import SystemClock
from proxy.http.addresses import Addresses
from proxy.http.client import Client
from proxy.http.messages import Outgoing, Unsent
from proxy.settings import Upstream as UpstreamSettings
from tests.kit.certificates import Authority
from tests.kit.listener import HOST, Listener

GET = Outgoing("GET", "/", "", [], b"")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NAME = "api.example"
NOBODY = "127.0.0.2"  # an address of the machine on which nothing listens


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
    with suppress(asyncio.IncompleteReadError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)


@asynccontextmanager
async def client_for(url: str, **settings: Any) -> AsyncIterator[Client]:
    values = {"api_url": url, "login_url": url, "connect_timeout": 2, **settings}
    client = Client(UpstreamSettings.model_validate(values), url, clock=SystemClock())
    try:
        yield client
    finally:
        await client.close()


async def read(client: Client) -> bytes:
    return (await client.read(await client.send(GET), 10)).body


# Addresses


class Names:
    """Answers look-ups in the place of the system, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
        self.hosts = hosts
        self.asked = self.answered = 0
        self.gate = threading.Event()
        self.gate.set()
        self._ask_system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, *args: Any, **options: Any) -> list[Any]:
        if host != NAME or options.get("flags", 0) & socket.AI_NUMERICHOST:
            return list(self._ask_system(host, *args, **options))
        self.asked += 1
        self.gate.wait(30)
        self.answered += 1
        if not self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (host, args[0])) for host in self.hosts]


async def test_a_name_is_looked_up_once_for_all_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a time, and for a while; each is given another address first."""
    names = Names(monkeypatch, "192.0.2.1", "192.0.2.2")
    names.gate.clear()
    addresses = Addresses(NAME, 443)
    asking = [asyncio.get_running_loop().create_task(addresses.get()) for _ in range(4)]
    await asyncio.wait(asking, timeout=0.05)
    names.gate.set()
    first = [found[0][4][0] for found in await asyncio.gather(*asking)]
    assert sorted(first) == ["192.0.2.1"] * 2 + ["192.0.2.2"] * 2
    assert {len(found) for found in [await addresses.get()]} == {2}
    assert names.asked == 1


async def test_a_request_that_leaves_does_not_end_the_look_up_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, "192.0.2.1")
    names.gate.clear()
    addresses = Addresses(NAME, 443)
    leaving, staying = (asyncio.get_running_loop().create_task(addresses.get()) for _ in range(2))
    await asyncio.wait([leaving], timeout=0.05)
    leaving.cancel()
    names.gate.set()
    assert len(await staying) == 1
    assert leaving.cancelled()
    assert names.asked == 1


async def test_a_failed_look_up_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    addresses = Addresses(NAME, 443)
    with pytest.raises(OSError, match="no such name"):
        await addresses.get()
    names.hosts = ("192.0.2.1",)
    assert len(await addresses.get()) == 1


@pytest.mark.parametrize("name", ["api..example", "a" * 64 + ".example"], ids=["empty", "long"])
async def test_a_name_that_cannot_be_one_has_no_address(name: str) -> None:
    async with client_for(f"http://{name}:80") as client:
        with pytest.raises(Unsent, match="has no address"):
            await client.send(GET)


def test_the_end_of_the_program_does_not_wait_for_a_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resolver that does not answer keeps its thread for half a minute."""

    async def leave() -> Names:
        names = Names(monkeypatch, "192.0.2.1")
        names.gate.clear()
        addresses = Addresses(NAME, 443)
        asking = asyncio.get_running_loop().create_task(addresses.get())
        await asyncio.wait([asking], timeout=0.05)
        asking.cancel()
        await addresses.close()
        return names

    names = asyncio.run(leave())  # which would end with the look-up
    assert (names.asked, names.answered) == (1, 0)
    names.gate.set()


@pytest.mark.parametrize("hosts", [(NOBODY, HOST), (HOST, NOBODY), ("192.0.2.1", HOST)])
async def test_one_address_that_answers_is_enough(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    """Whether the other one refuses or is silent, and whichever is tried first."""
    Names(monkeypatch, *hosts)
    async with Listener(answer_all) as server:
        for _ in range(2):
            url = f"http://{NAME}:{server.port}"
            async with client_for(url, idle_timeout=0) as client:
                assert [await read(client) for _ in range(3)] == [b"ok"] * 3


# Places


async def test_no_place_is_lost_whenever_senders_leave() -> None:
    """However they are cancelled, there are as many connections as before, and no more."""
    chance = random.Random(7)  # noqa: S311 -- no secret
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Listener(answer_all))
        url = f"http://{HOST}:{server.port}"
        client = await stack.enter_async_context(client_for(url, max_connections=3))
        for _ in range(60):
            sending = [asyncio.get_running_loop().create_task(read(client)) for _ in range(8)]
            await asyncio.wait(sending, timeout=chance.random() * 0.004)
            for task in chance.sample(sending, 5):
                task.cancel()
            outcomes = await asyncio.gather(*sending, return_exceptions=True)
            assert all(
                outcome == b"ok" or isinstance(outcome, asyncio.CancelledError)
                for outcome in outcomes
            )
            active, idle = client.connections()
            assert active == 0
            assert idle <= 3
        sending = [asyncio.get_running_loop().create_task(read(client)) for _ in range(20)]
        assert await asyncio.gather(*sending) == [b"ok"] * 20


# Forward proxies


class ForwardProxy:
    """Answers a CONNECT with what it is told to, then passes bytes both ways."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        writer.write(self._answer)
        if self._answer.endswith(b"established\r\n\r\n"):
            host, _, port = head.split()[1].decode().rpartition(":")
            other, end = await asyncio.open_connection(host, int(port))
            with suppress(ConnectionError):
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(_pump(reader, end))
                    pumps.create_task(_pump(other, writer))
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def listening(serve: Any, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Listen until the end of every connection."""
    serving: set[asyncio.Task[Any]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_server(run, HOST, 0, ssl=context) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            async with asyncio.timeout(5):
                await asyncio.gather(*serving, return_exceptions=True)


def serving(authority: Authority, label: str) -> ssl.SSLContext:
    pair = authority.issue(label)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert_file, pair.key_file)
    return context


async def answer_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await answer_all(reader, writer, 1)
    writer.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_tunnel_is_asked_for_with_our_credentials(scheme: str, tmp_path: Path) -> None:
    """Also of a forward proxy that itself speaks TLS; the tunnel is used again."""
    authority = Authority(tmp_path)
    forward = ForwardProxy(b"HTTP/1.1 200 Connection established\r\n\r\n")
    outer = serving(authority, "forward") if scheme == "https" else None
    async with (
        listening(answer_tls, serving(authority, "api")) as api,
        listening(forward.serve, outer) as port,
        client_for(
            f"https://{HOST}:{api}",
            ca_file=authority.file,
            proxy_url=f"{scheme}://a%20b:c%3Ad@{HOST}:{port}",
        ) as client,
    ):
        assert [await read(client) for _ in range(3)] == [b"ok"] * 3
    credentials = base64.b64encode(b"a b:c:d")
    host = f"{HOST}:{api}".encode()
    assert forward.heads == [
        b"CONNECT %b HTTP/1.1\r\nHost: %b\r\nProxy-Authorization: Basic %b\r\n\r\n"
        % (host, host, credentials)
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "the forward proxy answered 407"),
        (b"HTTP/1.1 302 No\r\nLocation: http://x\r\n\r\n", "the forward proxy answered 302"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "the forward proxy does not answer in HTTP"),
        (b"SSH-2.0-x\r\n\r\n", "the forward proxy does not answer in HTTP"),
        (b"", "the server cannot be reached"),
    ],
    ids=["407", "302", "early bytes", "another protocol", "close"],
)
async def test_without_a_tunnel_nothing_is_sent(answer: bytes, reason: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    forward = ForwardProxy(answer)
    async with (
        listening(answer_tls, serving(authority, "api")) as api,
        listening(forward.serve) as port,
        client_for(
            f"https://{HOST}:{api}", ca_file=authority.file, proxy_url=f"http://{HOST}:{port}"
        ) as client,
    ):
        with pytest.raises(Unsent) as caught:
            await client.send(GET)
        assert str(caught.value) == reason
        assert client.connections() == (0, 0)
    assert len(forward.heads) == 1
