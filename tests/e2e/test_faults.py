"""The program behind a network that breaks: what the API did is what its callers were told.

The program is a process of its own; a TCP proxy that delays, resets, truncates or swallows stands
between it and the API. Faults of the API itself are in test_outcomes.py, its refusals in
test_refused.py, the bounds of a queue in test_waiting.py, those of a crowd in test_pace.py.
"""

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from proxy.simulator import SigningKey
from tests.conftest import needs
from tests.kit.answers import LEFT, told, unexplained
from tests.kit.client import exchange, parse_response
from tests.kit.fault_proxy import (
    BlackHole,
    Delay,
    FaultProxy,
    HalfClose,
    Mode,
    Pass,
    ResetAfter,
    ResetOnConnect,
    TruncateAfter,
)
from tests.kit.listener import HOST
from tests.kit.process import Process, document_for, serving, until
from tests.kit.stalls import noting_stalls
from tests.kit.upstream import Hang, RawUpstream, RecordedRequest, Reply, Step

EXPORTS = "/api/v2/recordings/exports"
ACCEPTED = Reply(202, body=b'{"state": "PENDING"}')
TOLERANCE = 0.1  # the API stamps in the loop of the test, which a busy machine keeps waiting
TIMEOUT = 10.0
SHORT_TIMEOUT = 2.0  # where silence is among the faults
SHORT_RETRY = {"max_attempts": 3, "initial_backoff": 0.1}
LOST = "502 outcome-unknown"
SILENT = "504 outcome-unknown"
UNREACHABLE = "503 upstream-unreachable, come back"


@dataclass
class Callers:
    """They send exports, each with a key of its own, and note what they are told."""

    process: Process
    answers: dict[str, str] = field(default_factory=dict)

    async def post(self, token: str, *, port: int | None = None) -> str:
        key = f"{token}/{len(self.answers)}"
        self.answers[key] = LEFT
        raw = await exchange(HOST, port or self.process.port, export(token, key), timeout=30)
        self.answers[key] = told(parse_response(raw, "POST"))
        return self.answers[key]

    async def burst(self, accounts: int, each: int) -> list[str]:
        return await asyncio.gather(
            *(self.post(f"t{number}") for _ in range(each) for number in range(accounts))
        )


def export(token: str, key: str) -> bytes:
    body = json.dumps({"mediaType": "voice", "number": key}).encode()  # no two are equal
    head = (
        f"POST {EXPORTS} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer {token}\r\n"
        f"X-Export-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def applied(upstream: RawUpstream) -> Counter[str]:
    """How often each export was carried out, for all the API knows."""
    return Counter(
        request.values("x-export-key")[0].decode()
        for request in upstream.requests
        if request.target == EXPORTS.encode() and request.is_complete
    )


@asynccontextmanager
async def broken_by(
    folder: Path, mode: Mode, *, default: Step = ACCEPTED, seconds: float = TIMEOUT
) -> AsyncIterator[tuple[Callers, RawUpstream, FaultProxy]]:
    async with (
        RawUpstream(default=default) as upstream,
        FaultProxy(upstream.port, mode) as network,
        serving(
            folder,
            document_for(
                f"http://{HOST}:{network.port}",
                upstream={"connect_timeout": seconds, "response_timeout": seconds},
                pacing={"interval": 0.05},
                retry=SHORT_RETRY,
            ),
        ) as process,
    ):
        callers = Callers(process)
        yield callers, upstream, network
        assert unexplained(callers.answers, applied(upstream)) == []
        assert await process.early_sends() == 0


# The network


@pytest.mark.parametrize(
    ("mode", "answers", "carried_out"),
    [
        (Pass(), {"202"}, 20),
        (Delay(0.1), {"202"}, 20),
        (ResetOnConnect(), {LOST, UNREACHABLE}, 0),
        (ResetAfter(0), {LOST}, 20),
        (ResetAfter(10), {LOST}, 20),
        (TruncateAfter(10), {LOST}, 20),
        (TruncateAfter(55), {"cut short"}, 20),
        (BlackHole(), {SILENT}, 0),
    ],
    ids=[
        *("sound", "slow", "reset on connect", "reset before the answer", "reset in the head"),
        *("closed in the head", "closed in the body", "black hole"),
    ],
)
async def test_a_network_that_breaks(
    tmp_path: Path, mode: Mode, answers: set[str], carried_out: int
) -> None:
    seconds = SHORT_TIMEOUT if isinstance(mode, BlackHole) else TIMEOUT
    async with broken_by(tmp_path, mode, seconds=seconds) as (callers, upstream, network):
        assert set(await callers.burst(4, 5)) <= answers
        assert applied(upstream).total() == carried_out
        network.mode = Pass()
        network.reset_all()
        assert set(await callers.burst(4, 2)) == {"202"}


async def test_a_network_that_closes_one_half(tmp_path: Path) -> None:
    """What is sent still arrives, and no answer can come; after the close nothing is sent."""
    async with broken_by(tmp_path, HalfClose()) as (callers, upstream, _):
        assert set(await callers.burst(4, 5)) <= {LOST, UNREACHABLE}
        assert applied(upstream).total() <= 20


async def test_a_network_that_changes_its_mind(tmp_path: Path) -> None:
    """Any fault at any moment, connections in use included."""
    chance = random.Random(6)  # noqa: S311 - chooses faults, no secrets
    modes: Sequence[Mode] = (
        *(Pass(), Pass(), Delay(0.02), ResetOnConnect(), BlackHole(), HalfClose()),
        *(ResetAfter(10), TruncateAfter(55)),
    )

    async def go_on_breaking(network: FaultProxy) -> None:
        while True:
            network.mode = chance.choice(modes)
            await asyncio.sleep(0.1)
            network.reset_all()

    async with broken_by(tmp_path, Pass(), default=Reply(202, delay=0.02), seconds=0.5) as (
        callers,
        _,
        network,
    ):
        breaking = asyncio.ensure_future(go_on_breaking(network))
        answers = set(await callers.burst(10, 30))
        breaking.cancel()
        network.mode = Pass()
        network.reset_all()
        assert set(await callers.burst(4, 2)) == {"202"}
    assert answers - {"202"}  # the faults were met


# Callers who leave, and an API that never answers


@pytest.mark.timed
async def test_a_caller_that_leaves_after_the_send_has_used_the_slot(tmp_path: Path) -> None:
    """Nothing is sent again, and the next one keeps the distance."""
    interval = 1.0
    async with (
        noting_stalls() as stalls,
        RawUpstream(default=Reply(202, delay=0.3)) as upstream,
        serving(tmp_path, document_for(upstream.url, pacing={"interval": interval})) as process,
    ):
        callers = Callers(process)
        leaving = asyncio.ensure_future(callers.post("t"))
        await upstream.received()
        leaving.cancel()
        assert await callers.post("t") == "202"
        assert unexplained(callers.answers, applied(upstream)) == []
        await until(_is_logged(process, 499))
    first, second = (request.arrived_at for request in upstream.requests)
    slack = TOLERANCE + stalls.longest
    assert interval - slack <= second - first < interval + 0.9 + stalls.total


def _is_logged(process: Process, code: int) -> Callable[[], Awaitable[bool]]:
    async def question() -> bool:
        return code in [line["code"] for line in process.logged("request")]

    return question


@pytest.mark.timed
async def test_an_api_that_never_answers_a_hundred_accounts_answers_others(
    tmp_path: Path,
) -> None:
    """They have four connections each that hang; another account's calls take no longer."""

    def answer_one(request: RecordedRequest) -> Step:
        return ACCEPTED if request.values("authorization") == [b"Bearer quick"] else Hang()

    async with (
        noting_stalls() as stalls,
        RawUpstream(answer_one) as upstream,
        serving(
            tmp_path,
            document_for(
                upstream.url,
                pacing={"interval": 0.1},
                upstream={"response_timeout": 4},
            ),
        ) as process,
    ):
        callers = Callers(process)
        hanging = asyncio.ensure_future(callers.burst(100, 4))
        await upstream.received(400, within=10)
        begun = time.monotonic()
        assert [await callers.post("quick") for _ in range(5)] == ["202"] * 5
        took = time.monotonic() - begun
        assert not hanging.done()
        assert set(await hanging) == {SILENT}
        assert unexplained(callers.answers, applied(upstream)) == []
    assert took < 1.5 + stalls.total


# The wall clock

ISSUER, AUDIENCE = "https://login.example", "https://api.example"


def library(name: str, *patterns: str) -> str:
    """The path of a library to preload; without it the test is skipped, and in CI it fails."""
    found = [path for pattern in patterns for path in Path("/usr/lib").glob(pattern)]
    if not found:
        needs(name)
    return str(found[0])


@pytest.mark.timed
async def test_the_wall_clock_jumps_an_hour_forward_and_back(tmp_path: Path) -> None:
    """The pace does not notice; a JWT is judged by the hour it is now."""
    preload = library("faketime", "*/faketime/libfaketimeMT.so.1", "faketime/libfaketimeMT.so.1")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environ = {
        "LD_PRELOAD": preload,
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    key, now, interval = SigningKey.generate(), time.time(), 0.4

    def claims(issued_at: float, expires_at: float) -> str:
        return key.sign(
            {
                "iss": ISSUER,
                "aud": AUDIENCE,
                "sub": "london-id",
                "client_id": "london-id",
                "iat": int(issued_at),
                "exp": int(expires_at),
            }
        )

    short, long = claims(now, now + 1800), claims(now - 86400, now + 86400)
    issued = {"access_token": "managed", "token_type": "bearer", "expires_in": 3000}

    def script(request: RecordedRequest) -> Step:
        match request.target:
            case b"/oauth/token":
                return Reply(body=json.dumps(issued).encode())
            case b"/keys":
                return Reply(body=json.dumps(key.key_set()).encode())
            case _:
                return ACCEPTED

    async with noting_stalls() as stalls, RawUpstream(script) as upstream:
        document = document_for(
            upstream.url,
            pacing={"interval": interval},
            accounts=[{"name": "london", "client_id": "london-id", "client_secret": "s"}],
            identity={
                "issuer": ISSUER,
                "audience": AUDIENCE,
                "jwks_url": f"{upstream.url}/keys",
            },
        )
        async with serving(tmp_path, document, environ=environ) as process:
            callers = Callers(process)
            judged: dict[str, list[str]] = {}
            for hours in ("+0", "+1h", "+0", "-1h", "+0"):
                offset.write_text(hours)
                waiting = asyncio.gather(*(callers.post(long) for _ in range(2)))
                judged.setdefault(hours, []).append(await callers.post(short))
                assert await waiting == ["202"] * 2
            shifts = [
                datetime.fromisoformat(line["time"]).timestamp() - time.time()
                for line in process.logged("request")
            ]
            assert await process.early_sends() == 0
    assert judged == {
        "+0": ["202", "202", "202"],
        "+1h": ["401 unauthenticated"],
        "-1h": ["401 unauthenticated"],
    }
    assert max(shifts) > 3500  # the jumps were real
    assert min(shifts) < -3500
    times = [
        request.arrived_at for request in upstream.requests if request.target == EXPORTS.encode()
    ]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == 13
    assert min(gaps) >= interval - TOLERANCE - stalls.longest
    assert max(gaps) < interval + 10  # no wait grew by the hour
    assert sum(request.target == b"/oauth/token" for request in upstream.requests) == 1


# Names and addresses


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a request on an address that the kit's upstream does not listen on."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ACCEPTED.encode(b"POST"))
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def deaf_listener() -> AsyncIterator[int]:
    """An IPv6 address on which a connect gets no answer: its backlog is full."""
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                filler = stack.enter_context(socket.socket(socket.AF_INET6))
                filler.setblocking(False)  # noqa: FBT003 - the socket module's own signature
                filler.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]


@pytest.mark.timed
async def test_a_dead_ipv6_address_and_an_address_that_changes(tmp_path: Path) -> None:
    """The living address is used at once; the new one as soon as the old one is forgotten."""
    preload = library("libnss_wrapper", "*/libnss_wrapper.so", "libnss_wrapper.so")
    hosts = tmp_path / "hosts"
    environ = {"LD_PRELOAD": preload, "NSS_WRAPPER_HOSTS": str(hosts)}
    async with deaf_listener() as port:
        hosts.write_text("::1 api.test\n127.0.0.1 api.test\n")
        document = document_for(
            f"http://api.test:{port}", pacing={"interval": 0.05}, retry=SHORT_RETRY
        )
        async with serving(tmp_path, document, environ=environ) as process:
            callers = Callers(process)
            async with RawUpstream(default=Reply(202, close_after=True), port=port) as old:
                begun = time.monotonic()
                assert await callers.post("a") == "202"
                assert time.monotonic() - begun < 3  # the dead one would take 5 s
            hosts.write_text("127.0.0.2 api.test\n")
            new = await asyncio.start_server(accept, "127.0.0.2", port)
            async with new:
                answer = ""
                while answer != "202":
                    assert time.monotonic() - begun < 15
                    answer = await callers.post("a")
                    assert answer in {"202", UNREACHABLE}
    assert len(old.requests) == 1
