"""The pace on the wire: real sockets, real time, and only what the API saw arrive counts.

Each test is about one promise; the tolerances are those of the promise. What the machine adds is
measured, and allowed for: a stamp is late by as much as the process that takes it stood still.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import yaml

from proxy.service.lifecycle import Running
from proxy.simulator import ClientSpec, Simulator, SimulatorSettings
from proxy.simulator.ledger import furthest_ahead
from tests.kit.client import READ_SIZE, RawConnection, Response, exchange, parse_response, port_of
from tests.kit.listener import HOST
from tests.kit.logins import token_from
from tests.kit.proxy import proxy_for
from tests.kit.stalls import noting_stalls
from tests.kit.upstream import RawUpstream, Reply, free_port

pytestmark = pytest.mark.timed
EXPORTS = "/api/v2/recordings/exports"
INTERVAL = 0.5
TOLERANCE = 0.020
LENIENT = 10.0  # seconds: such an API refuses nobody, and says how far ahead they came
BODY = b'{"mediaType": "voice"}'
EARLY_SENDS = re.compile(rb"^export_proxy_early_sends_total\{.*\} (\S+)$", re.MULTILINE)


def export(token: str, **fields: str) -> bytes:
    lines = [
        f"POST {EXPORTS} HTTP/1.1",
        "Host: proxy.example",
        f"Authorization: Bearer {token}",
        *(f"{name}: {value}" for name, value in fields.items()),
        f"Content-Length: {len(BODY)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + BODY


async def call(port: int, token: str, *, within: float) -> Response:
    """Ask for one export, on a connection of its own."""
    return parse_response(await exchange(HOST, port, export(token), timeout=within))


async def early_sends(admin_port: int) -> list[float]:
    """The proxy's own count of sends before their time, one number a line."""
    head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = parse_response(await exchange(HOST, admin_port, head))
    return [float(value) for value in EARLY_SENDS.findall(answer.body)]


async def test_everything_fired_at_once_is_accepted_and_on_time(tmp_path: Path) -> None:
    """4 accounts x 20 exports, each account with two tokens: nobody sees a 429."""
    settings = SimulatorSettings(
        interval=INTERVAL,
        tolerance=LENIENT,
        any_client=True,
        any_client_spec=ClientSpec(secret=None, opaque=True),
    )
    api = Simulator(settings, monotonic=time.monotonic, wall=time.time)
    clients = [f"client-{number}" for number in range(4)]
    async with (
        noting_stalls() as stalls,
        api.serve(HOST) as server,
        proxy_process(server.url, tmp_path, interval=INTERVAL) as proxy,
    ):
        tokens = [await token_from(proxy.port, client) for client in clients for _ in range(2)]
        answers = await asyncio.gather(
            *(call(proxy.port, token, within=20) for token in tokens for _ in range(10))
        )
        early = await early_sends(proxy.admin_port)
    assert [answer.status for answer in answers] == [202] * 80
    assert set(early) == {0}
    for client in clients:
        report = api.report(client)
        assert (report.accepted, report.refused) == (20, 0)
        assert report.ahead is not None
        assert report.ahead <= TOLERANCE + stalls.longest
        assert 19 * INTERVAL - TOLERANCE - stalls.longest <= report.span
        assert report.span <= 19 * INTERVAL * 1.01 + stalls.total


@dataclass(frozen=True, slots=True)
class Caller:
    number: int
    connection: RawConnection


@asynccontextmanager
async def line_of(
    proxy: Running, count: int, *, token: str = "waiting"
) -> AsyncIterator[list[Caller]]:
    """Callers who came one after the other, each in the queue before the next one came."""
    async with contextlib.AsyncExitStack() as stack:
        callers = []
        for number in range(count):
            opened = await RawConnection.open(HOST, port_of(proxy.url))
            callers.append(Caller(number, await stack.enter_async_context(opened)))
            await opened.send(export(token, **{"X-Caller": str(number)}))
            async with asyncio.timeout(10):
                while queue_depth(proxy) <= number:  # noqa: ASYNC110 -- what is outside has no event
                    await asyncio.sleep(0)
        yield callers


def queue_depth(proxy: Running) -> int:
    states = proxy.accounts.states()
    return sum(queue.queue_depth for state in states for queue in state.routes)


async def test_callers_that_hang_up_leave_no_hole_and_the_others_keep_their_order() -> None:
    """20 wait, half of them leave after a second, by FIN or RST, at both ends of the queue."""
    async with (
        noting_stalls() as stalls,
        RawUpstream() as upstream,
        proxy_for(upstream.url) as proxy,
    ):
        async with line_of(proxy, 20) as callers:
            await upstream.received(2, within=10)  # a second has passed since the start
            leaving = [callers[number] for number in (2, 3, 4, 6, 7, 10, 11, 15, 16, 19)]
            for caller in leaving:
                (caller.connection.close if caller.number % 2 else caller.connection.reset)()
            staying = [caller for caller in callers if caller not in leaving]
            answers = [
                await caller.connection.read_response("POST", timeout=10) for caller in staying
            ]
        early = await early_sends(port_of(proxy.admin_url))
    assert len(staying) == 10
    assert [answer.status for answer in answers] == [200] * 10
    arrived = [int(request.values("X-Caller")[0]) for request in upstream.requests]
    assert arrived == [caller.number for caller in staying]
    times = [request.arrived_at for request in upstream.requests]
    assert is_paced(times, INTERVAL, stalled=stalls.longest)
    assert times[-1] - times[0] <= 9 * INTERVAL * 1.02 + stalls.total
    assert early == [0]


def is_paced(times: Sequence[float], interval: float, *, stalled: float) -> bool:
    """Whether none of several arrivals ran ahead of the pace by more than the tolerance."""
    ahead = furthest_ahead(times, interval)
    return ahead is not None and ahead <= TOLERANCE + stalled


async def test_nothing_is_sent_before_one_interval_after_the_start() -> None:
    """What was sent before a restart is forgotten; the first send makes up for that."""
    begun = time.monotonic()
    async with RawUpstream() as upstream, proxy_for(upstream.url) as proxy:
        port = port_of(proxy.url)
        answers = await asyncio.gather(
            *(call(port, f"t{number}", within=10) for number in range(5))
        )
    assert [answer.status for answer in answers] == [200] * 5
    assert min(request.arrived_at for request in upstream.requests) >= begun + INTERVAL


async def test_accounts_have_queues_and_paces_of_their_own() -> None:
    """A long queue of one delays no other, and a configured interval is its account's alone."""
    accounts = [{"name": "quick", "client_id": "quick-id", "interval": 0.2}]
    grant = Reply(200, (), b'{"access_token": "quick", "expires_in": 600}')
    async with (
        noting_stalls() as stalls,
        RawUpstream(lambda got: grant if got.target == b"/oauth/token" else Reply()) as upstream,
        proxy_for(upstream.url, accounts=accounts) as proxy,
        line_of(proxy, 10, token="long") as waiting,
    ):
        port = port_of(proxy.url)
        assert await token_from(port, "quick-id") == "quick"
        calls = [("other", 3), ("quick", 6)]
        answers = await asyncio.gather(
            *(call(port, token, within=10) for token, count in calls for _ in range(count))
        )
        assert queue_depth(proxy) >= 4  # the long queue is still long
        del waiting
    assert {answer.status for answer in answers} == {200}

    def arrivals(token: str) -> list[float]:
        bearer = [f"Bearer {token}".encode()]
        return [
            got.arrived_at for got in upstream.requests if got.values("Authorization") == bearer
        ]

    assert [len(arrivals(token)) for token in ("other", "quick")] == [3, 6]
    assert is_paced(arrivals("other"), INTERVAL, stalled=stalls.longest)
    assert is_paced(arrivals("quick"), 0.2, stalled=stalls.longest)
    assert is_paced(arrivals("long"), INTERVAL, stalled=stalls.longest)


# The proxy as a process of its own, which is timed as it runs in earnest.

CROWD_INTERVAL = 0.4
CROWD_ACCOUNTS = 100
CROWD_CALLERS = 20  # of each account
IDLE = "idle"
DESCRIPTORS = 8192
SO_TIMESTAMPNS = 35  # Linux: see socket(7); Python has no name for it
GONE = CROWD_ACCOUNTS * 2  # so few descriptors are left open when all callers are gone


@dataclass(frozen=True, slots=True)
class Process:
    """A proxy of its own: its id and ports."""

    pid: int
    port: int
    admin_port: int

    def resident(self) -> int:
        """Kibibytes of memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    async def is_ready(self) -> bool:
        try:
            return (await get(self.admin_port, "/readyz")).status == 200
        except ConnectionRefusedError:
            return False

    async def waiting(self) -> int:
        accounts = json.loads((await get(self.admin_port, "/status.json")).body)["accounts"]
        return sum(queue["queue_depth"] for account in accounts for queue in account["routes"])

    async def has_a_crowd(self) -> bool:
        return await self.waiting() >= CROWD_ACCOUNTS * CROWD_CALLERS / 2

    async def is_left_alone(self) -> bool:
        return len(os.listdir(f"/proc/{self.pid}/fd")) < GONE  # noqa: PTH208 -- only counted


async def get(port: int, path: str) -> Response:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return parse_response(await exchange(HOST, port, head.encode()))


async def until(question: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes, for 20 s at most."""
    async with asyncio.timeout(20):
        while not await question():  # noqa: ASYNC110 -- of another process
            await asyncio.sleep(0.05)


class Stamper:
    """An API whose stamps are the kernel's, taken as the bytes arrive; it answers at once.

    The stand-in stamps a request when its turn has come, and of a hundred at once the last one's
    comes late. `/arrivals` gives all stamps, by token, and forgets them.
    """

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)  # noqa: FBT003 -- the socket module's own signature
        listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)  # accepted sockets inherit it
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._arrivals: defaultdict[str, list[float]] = defaultdict(list)

    async def serve(self) -> None:
        while True:
            connection, _ = await self._loop.sock_accept(self._listener)
            self._loop.add_reader(connection, self._read, connection, bytearray())

    def _read(self, connection: socket.socket, received: bytearray) -> None:
        data, ancillary, _, _ = connection.recvmsg(READ_SIZE, 256)
        if not data:
            self._loop.remove_reader(connection)
            connection.close()
            return
        received += data
        head, end, body = bytes(received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if end and len(body) == (int(length[1]) if length else 0):
            received.clear()
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            answer = self._answer(head.decode(), seconds + nanoseconds / 1e9)
            accepted = b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n" % len(answer)
            connection.setblocking(True)  # noqa: FBT003 -- likewise
            connection.sendall(accepted + answer)
            connection.setblocking(False)  # noqa: FBT003 -- likewise

    def _answer(self, head: str, at: float) -> bytes:
        if head.startswith("GET /arrivals "):
            seen = json.dumps(self._arrivals)
            self._arrivals.clear()
            return seen.encode()
        self._arrivals[re.findall(r"(?i)\r\nauthorization: Bearer (\S+)", head)[0]].append(at)
        return b"{}"


def stamp_arrivals(port: int) -> None:
    """Serve until killed: what the process of the API does."""

    async def serve() -> None:
        with socket.create_server((HOST, port), backlog=1024) as listener:
            await Stamper(listener).serve()

    asyncio.run(serve())


@asynccontextmanager
async def api_process() -> AsyncIterator[int]:
    """Run the API that stamps, and give its port."""
    port = free_port()
    child = multiprocessing.get_context("spawn").Process(target=stamp_arrivals, args=(port,))
    child.start()
    try:
        await until(partial(is_open, port))
        yield port
    finally:
        child.terminate()
        child.join()
        child.close()


async def is_open(port: int) -> bool:
    try:
        (await RawConnection.open(HOST, port)).close()
    except ConnectionRefusedError:
        return False
    return True


@asynccontextmanager
async def proxy_process(api_url: str, folder: Path, *, interval: float) -> AsyncIterator[Process]:
    port, admin_port = free_port(), free_port()
    config = folder / "proxy.yaml"
    document = {
        "listen": {"port": port},
        "admin": {"port": admin_port},
        "upstream": {"api_url": api_url, "login_url": api_url},
        "pacing": {"interval": interval},
        "identity": {"whoami": None},  # the API counts what arrives for each token
        "limits": {"max_connections_per_peer": 4000},
        "log": {"level": "error"},
    }
    config.write_text(yaml.safe_dump(document))
    # Coverage is left out: its tracer would take part in the timing.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    command = (sys.executable, "-m", "proxy", "serve", "--config", str(config))
    child = await asyncio.create_subprocess_exec(*command, env=environ)
    process = Process(child.pid, port, admin_port)
    try:
        await until(process.is_ready)
        yield process
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.fixture
def _descriptors() -> Iterator[None]:
    """Enough of them for a crowd, here and in what is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def crowd(process: Process, tokens: Sequence[str], idle_token: str) -> float:
    """Let 2,000 callers come at once; return the seconds an idle account took meanwhile."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(await RawConnection.open(HOST, process.port))
            for _ in range(CROWD_ACCOUNTS * CROWD_CALLERS)
        ]
        for connection, token in zip(connections, cycle(tokens), strict=False):
            await connection.send(export(token))
        await until(process.has_a_crowd)
        begun = time.monotonic()
        idle_answer = await call(process.port, idle_token, within=10)
        took = time.monotonic() - begun
        answers = await asyncio.gather(
            *(connection.read_response("POST", timeout=20) for connection in connections)
        )
    assert idle_answer.status == 202
    assert [answer.status for answer in answers] == [202] * len(connections)
    return took


@pytest.mark.usefixtures("_descriptors")
async def test_a_crowd_is_paced_delays_nobody_else_and_is_forgotten(tmp_path: Path) -> None:
    """2,000 callers of 100 accounts, twice; the second time costs no memory that stays."""
    tokens = [f"token-{number}" for number in range(CROWD_ACCOUNTS)]
    resident = []
    async with (
        noting_stalls() as stalls,
        api_process() as api_port,
        proxy_process(f"http://{HOST}:{api_port}", tmp_path, interval=CROWD_INTERVAL) as process,
    ):
        for _ in range(2):
            took = await crowd(process, tokens, IDLE)
            assert took < CROWD_INTERVAL + stalls.total
            arrivals = json.loads((await get(api_port, "/arrivals")).body)
            assert len(arrivals.pop(IDLE)) == 1
            assert {len(times) for times in arrivals.values()} == {CROWD_CALLERS}
            for times in arrivals.values():
                assert is_paced(times, CROWD_INTERVAL, stalled=stalls.longest)
            await until(process.is_left_alone)
            resident.append(process.resident())
        early = await early_sends(process.admin_port)
    assert early == [0]
    first, second = resident
    assert second - first <= 0.05 * first


MANY, MANY_INTERVAL = 2000, 0.02
MOST_OF_A_CALLER = 32  # kibibytes of the proxy's memory


@pytest.mark.usefixtures("_descriptors")
async def test_two_thousand_exports_of_one_account_are_accepted_at_the_pace(tmp_path: Path) -> None:
    """Fired at once: none is early or refused, and none takes much memory while it waits.

    How long all of them take is measured by `make bench`, on cores of their own.
    """
    async with (
        noting_stalls() as stalls,
        api_process() as api_port,
        proxy_process(f"http://{HOST}:{api_port}", tmp_path, interval=MANY_INTERVAL) as process,
        contextlib.AsyncExitStack() as stack,
    ):
        await call(process.port, IDLE, within=10)
        before = process.resident()
        connections = [
            await stack.enter_async_context(await RawConnection.open(HOST, process.port))
            for _ in range(MANY)
        ]
        for connection in connections:
            await connection.send(export("crowd"))
        await until(process.has_a_crowd)
        each = (process.resident() - before) / await process.waiting()
        answers = await asyncio.gather(
            *(connection.read_response("POST", timeout=180) for connection in connections)
        )
        times = sorted(json.loads((await get(api_port, "/arrivals")).body)["crowd"])
        early = await early_sends(process.admin_port)
    assert [answer.status for answer in answers] == [202] * MANY
    assert early == [0]
    assert is_paced(times, MANY_INTERVAL, stalled=stalls.longest)
    assert each <= MOST_OF_A_CALLER
