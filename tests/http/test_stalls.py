"""What has come over a socket while the loop stood still counts, although its time is over.

Each stall begins while the loop reads its sockets, so that its timers come next.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.clock import SystemClock
from proxy.deadlines import Deadline, time_limit
from proxy.http.admission import Admission
from proxy.http.bodies import Bodies
from proxy.http.client import Client
from proxy.http.handshakes import TlsServer
from proxy.http.listener import Listener
from proxy.http.messages import Outgoing
from proxy.http.request import Request
from proxy.http.sockets import open_sockets
from proxy.http.tls import tls_context
from proxy.problems import Problem
from proxy.settings import Limits, Tls, Upstream
from tests.kit.certificates import Authority
from tests.kit.listener import HOST

LIMIT = 0.1  # seconds
STALL = 0.2
GET = Outgoing("GET", "/", "", [], b"")

Run = Callable[[Coroutine[Any, Any, bytes]], bytes]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in a loop of that kind."""
    loop = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}[request.param]

    async def bounded(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
        async with asyncio.timeout(20):
            return await coroutine

    def run(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(bounded(coroutine))

    return run


def stall_next(
    meanwhile: Callable[[], object], seconds: Callable[[], float] = lambda: STALL
) -> None:
    """Halt the loop for that long when it looks at its sockets next, and act meanwhile."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()

    def stall() -> None:
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
        meanwhile()
        threading.Event().wait(seconds())

    loop.add_reader(ours, stall)
    theirs.send(b"x")


# From the API


class Api:
    """A server in the kernel alone: it accepts and answers when the test says so."""

    def __init__(self) -> None:
        self.listening = socket.create_server((HOST, 0))
        self._peers: list[socket.socket] = []

    def client(self, **limits: float) -> Client:
        url = f"http://{HOST}:{self.listening.getsockname()[1]}"
        values = {"api_url": url, "login_url": url, **limits}
        return Client(Upstream.model_validate(values), url, clock=SystemClock())

    def answer(self) -> None:
        peer, _ = self.listening.accept()
        self._peers.append(peer)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    def close(self) -> None:
        for one in (self.listening, *self._peers):
            one.close()


def test_an_answer_that_came_during_a_stall_is_passed_on(run: Run) -> None:
    async def ask() -> bytes:
        client = api.client(response_timeout=LIMIT)
        try:
            response = await client.send(GET, on_sent=lambda _: stall_next(api.answer))
            return (await client.read(response, 100)).body
        finally:
            await client.close()

    api = Api()
    try:
        assert run(ask()) == b"hi"
    finally:
        api.close()


def test_a_connection_that_was_made_during_a_stall_is_used(run: Run) -> None:
    async def ask() -> bytes:
        client = api.client(connect_timeout=LIMIT)
        try:
            stall_next(lambda: None)
            response = await client.send(GET, on_sent=lambda _: api.answer())
            return (await client.read(response, 100)).body
        finally:
            await client.close()

    api = Api()
    try:
        assert run(ask()) == b"hi"
    finally:
        api.close()


# From callers


def test_a_body_that_came_during_a_stall_is_read(run: Run) -> None:
    async def serve() -> bytes:
        bodies = Bodies(Limits(body_timeout=LIMIT))
        read = asyncio.get_running_loop().create_future()

        async def handle(request: Request) -> None:
            stall_next(lambda: caller.sendall(b"body"))
            try:
                read.set_result(await bodies.read(request))
            except Problem as problem:
                read.set_result(problem.name.encode())

        listener = Listener(handle, bodies.room, clock=SystemClock())
        port = await listener.listen(HOST, 0, backlog=10)
        with socket.create_connection((HOST, port)) as caller:
            caller.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
            found = await read
            await listener.close(1)
        return bytes(found)

    assert run(serve()) == b"body"


# TLS


class Handshakes:
    """The server, with a limit for each handshake, and a caller that speaks TLS by hand."""

    def __init__(self, folder: Path, timeout: Callable[[], float]) -> None:
        authority = Authority(folder)
        pair = authority.issue("proxy")
        self.refused: list[str] = []
        self._context = tls_context(Tls(cert_file=pair.cert_file, key_file=pair.key_file))
        self._timeout = timeout
        self._made = asyncio.Event()
        self.caller = socket.socket()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ssl.create_default_context(cafile=authority.file).wrap_bio(
            self._incoming, self._outgoing, server_hostname=HOST
        )

    async def begin(self) -> TlsServer:
        made = self._made

        class Counted(asyncio.Protocol):
            def connection_made(self, _: asyncio.BaseTransport) -> None:
                made.set()

        server = TlsServer(
            await open_sockets(HOST, 0, backlog=10),
            self._context,
            Admission(Limits, self.refused.append),
            protocol=lambda _: Counted(),
            timeout=self._timeout,
        )
        self.caller.connect(server.sockets[0].getsockname())
        self.caller.setblocking(False)  # noqa: FBT003 -- the socket module's own signature
        return server

    def step(self) -> tuple[bool, bytes]:
        """Go on with the caller's handshake: True if it is done, and what is to be sent."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    async def receive(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.caller, 65_536)
        if not data:
            raise ConnectionResetError
        self._incoming.write(data)

    async def end(self) -> bytes:
        await self._made.wait()
        return b" ".join([b"done", *(reason.encode() for reason in self.refused)])


def test_a_hello_that_came_during_a_stall_is_answered(run: Run, tmp_path: Path) -> None:
    """The peer still needs our answer, so the handshake gets its time after the stall."""

    async def shake_hands() -> bytes:
        def timeout() -> float:
            if len(limits) > 1:
                stall_next(lambda: hands.caller.send(hello))
            return limits.pop(0)

        limits = [LIMIT, 30.0]
        hands = Handshakes(tmp_path, timeout)
        _, hello = hands.step()
        with hands.caller:
            server = await hands.begin()
            is_done = False
            while not is_done:
                await hands.receive()
                is_done, data = hands.step()
                await asyncio.get_running_loop().sock_sendall(hands.caller, data)
            found = await hands.end()
            server.close()
        return found

    assert run(shake_hands()) == b"done"


def test_the_end_of_a_handshake_that_came_during_a_stall_counts(run: Run, tmp_path: Path) -> None:
    limit = 1.5  # longer than the machine may stand still before the stall

    async def shake_hands() -> bytes:
        began = SystemClock.monotonic()
        hands = Handshakes(tmp_path, lambda: limit)
        _, data = hands.step()
        with hands.caller:
            server = await hands.begin()
            is_done = False
            while not is_done:
                await asyncio.get_running_loop().sock_sendall(hands.caller, data)
                await hands.receive()
                is_done, data = hands.step()
            stall_next(
                lambda: hands.caller.send(data),
                lambda: max(0.0, began + limit + STALL - SystemClock.monotonic()),
            )
            found = await hands.end()
            server.close()
        return found

    assert run(shake_hands()) == b"done"


# What holds the time


def test_a_limit_ends_its_block_if_nothing_comes(run: Run) -> None:
    async def wait() -> bytes:
        try:
            async with time_limit(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return b"late"
        return b"in time"

    assert run(wait()) == b"late"


def test_a_limit_that_its_holder_has_ended_ends_once(run: Run) -> None:
    async def wait() -> bytes:
        loop = asyncio.get_running_loop()
        errors: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, error: errors.append(error))
        try:
            async with time_limit(0.01) as limit:
                limit.reschedule(loop.time())
                stall_next(lambda: None, lambda: 0.05)
                await loop.create_future()
        except TimeoutError:
            return repr(errors).encode()
        return b"in time"

    assert run(wait()) == b"[]"


def test_what_comes_in_the_last_passes_sets_a_new_moment(run: Run) -> None:
    async def wait() -> bytes:
        loop = asyncio.get_running_loop()
        deadline, calls = Deadline(loop), list[str]()
        deadline.expect_within(0.01, lambda: calls.append("late"))
        stall_next(lambda: loop.call_soon(deadline.expect_within, 30, lambda: None), lambda: 0.05)
        over = loop.create_future()
        loop.call_later(0.2, over.set_result, None)
        await over
        deadline.stop()
        return repr(calls).encode()

    assert run(wait()) == b"[]"
