"""An API that refuses, fails, stalls and hangs up at random, behind a network that breaks.

It stamps what arrives before anything else, and tells it all at `/report`. It runs in a process of
its own, and still a busy machine may keep it from looking: so with each stamp goes the time since
which the request may have been there.
"""

import asyncio
import json
import random
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.kit.fault_proxy import (
    BlackHole,
    FaultProxy,
    HalfClose,
    Mode,
    Pass,
    ResetAfter,
    ResetOnConnect,
    TruncateAfter,
)
from tests.kit.listener import HOST

BREAK_SECONDS = 0.5
BREAKS_EVERY = (5, 15)  # seconds, at random
IDLE_SECONDS = 5.0  # after which it closes a connection, as servers do
PULSE_SECONDS = 0.005
PULSES = 10
MODES: Sequence[Mode] = (
    ResetOnConnect(),
    BlackHole(),
    HalfClose(),
    ResetAfter(20),
    TruncateAfter(20),
)

FATES = {
    "accept": 0.91,
    "accept late": 0.03,
    "refuse": 0.01,
    "fail": 0.01,
    "reset": 0.01,
    "close": 0.01,
    "half": 0.01,
    "garbage": 0.005,
    "silence": 0.005,
}
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
ANSWERS = {
    "accept": ACCEPTED,
    "accept late": ACCEPTED,
    "refuse": b"HTTP/1.1 429 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "fail": b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}",
    "half": b"HTTP/1.1 202 Accepted\r\nContent-Length: 10\r\n\r\n01234",
    "garbage": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
}
ENDS = {"reset", "close", "half", "garbage"}


class Pulse:
    """Knows for how long this process did not look, within the last moments."""

    def __init__(self) -> None:
        self._beats: deque[float] = deque([time.monotonic()], maxlen=PULSES)

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            self._beats.append(time.monotonic())

    def blind(self, now: float) -> float:
        """Return the longest time without a beat, beyond what is between any two."""
        beats = [*self._beats, now]
        return max(later - earlier for earlier, later in pairwise(beats)) - PULSE_SECONDS


@dataclass(slots=True)
class Seen:
    """What the API saw: stamps by account, each with how late it may be; fates by request key."""

    arrivals: defaultdict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    fates: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    logins: int = 0


class Api(asyncio.Protocol):
    """Stamps what arrives, then decides its fate."""

    def __init__(self, seen: Seen, pulse: Pulse) -> None:
        self._seen = seen
        self._pulse = pulse
        self._received = b""
        self._closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        at = time.monotonic()
        self._received += data
        if self._closing is not None:
            self._closing.cancel()
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if end and len(body) == (int(length[1]) if length else 0):
            self._received = b""
            self._answer(head.decode(), at)

    def _answer(self, head: str, at: float) -> None:
        if head.startswith("GET /report"):
            seen = self._seen
            self._send_json({"arrivals": seen.arrivals, "fates": seen.fates, "logins": seen.logins})
        elif head.startswith("POST /oauth/token"):
            self._seen.logins += 1
            if random.random() < 0.05:
                self._transport.write(ANSWERS["fail"])
            else:
                token = f"managed-{_value(head, 'authorization')}-{self._seen.logins}".replace(
                    " ", ""
                )
                self._send_json({"access_token": token, "token_type": "bearer", "expires_in": 40})
        else:
            (fate,) = random.choices([*FATES], [*FATES.values()])
            bearer = _value(head, "authorization").removeprefix("Bearer ")
            self._seen.arrivals[bearer.rpartition("-")[0]].append((at, self._pulse.blind(at)))
            self._seen.fates[_value(head, "x-export-key")].append(fate)
            later = random.uniform(0.2, 1.5) if fate == "accept late" else 0
            asyncio.get_running_loop().call_later(later, self._meet, fate)

    def _meet(self, fate: str) -> None:
        self._transport.write(ANSWERS.get(fate, b""))
        if fate == "reset":
            self._transport.abort()
        elif fate in ENDS:
            self._transport.close()
        elif fate != "silence":
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(IDLE_SECONDS, self._transport.close)

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def _value(head: str, name: str) -> str:
    (value,) = re.findall(rf"(?im)^{name}: *(.*?)\r?$", head)
    return str(value)


def serve_api(port: int, announce: Callable[[int], None]) -> None:
    """Serve until killed, behind a network that breaks now and then and has the port announced."""

    async def serve() -> None:
        seen, pulse, loop = Seen(), Pulse(), asyncio.get_running_loop()
        server = await loop.create_server(lambda: Api(seen, pulse), HOST, port, backlog=1024)
        async with server, FaultProxy(port) as faults, asyncio.TaskGroup() as tasks:
            tasks.create_task(pulse.beat())
            announce(faults.port)
            while True:
                await asyncio.sleep(random.uniform(*BREAKS_EVERY))
                faults.mode = random.choice(MODES)
                await asyncio.sleep(BREAK_SECONDS)
                faults.mode = Pass()
                faults.reset_all()

    asyncio.run(serve())
