"""A proxy, its API and callers on real sockets, on a clock that the test moves.

The proxy sends nothing in its first interval. So all that come in it wait together, and leave when
the clock is advanced.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from proxy.service.lifecycle import Running, running
from tests.kit.client import RawConnection, Response, port_of
from tests.kit.clock import FakeClock
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.proxy import settings_for
from tests.kit.upstream import RawUpstream, Reply, Script, Step

JOB = "/api/v2/recording/jobs/1"
INTERVAL = 1.0
STATE = Reply(200, [("X-Job", "1")], b'{"state": "PROCESSING"}')


def poll(
    *fields: str, token: str = "a", path: str = JOB, method: str = "GET", body: bytes = b""
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: proxy", f"Authorization: Bearer {token}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Scene:
    """A proxy, its API and its callers."""

    def __init__(self, proxy: Running, upstream: RawUpstream, clock: FakeClock) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.clock = clock
        self.port = port_of(proxy.url)
        self._connections: list[RawConnection] = []

    async def ask(self, *requests: bytes) -> list[RawConnection]:
        """Let these wait, each on a connection of its own, one after the other."""
        opened = []
        for data in requests:
            connection = await RawConnection.open(HOST, self.port)
            self._connections.append(connection)
            opened.append(connection)
            waiting = self.depth + 1
            await connection.send(data)
            await self.until_depth(waiting)
        return opened

    @property
    def depth(self) -> int:
        states = self.proxy.accounts.states()
        return sum(queue.queue_depth for state in states for queue in state.routes)

    async def until_depth(self, depth: int) -> None:
        async def question() -> bool:
            return self.depth == depth

        await until(question)

    async def until_handled(self, count: int) -> None:
        """Wait until the proxy knows that so many callers are left."""

        async def question() -> bool:
            return self.proxy.proxy.handled == count

        await until(question)

    async def sent(self, count: int) -> None:
        """Let as much time pass as so many sends in all take, one interval after the other."""
        while len(self.upstream.requests) < count:
            before = len(self.upstream.requests)
            await self.clock.advance(INTERVAL)
            await self.upstream.received(before + 1)

    async def answers(
        self, connections: Sequence[RawConnection], method: str = "GET"
    ) -> list[Response]:
        return [await connection.read_response(method) for connection in connections]

    async def answers_as_time_passes(self, connections: Sequence[RawConnection]) -> list[Response]:
        """Read the answers of all, while an interval after the other passes."""
        reading = asyncio.gather(*(connection.read_response() for connection in connections))
        while not reading.done():
            await self.clock.advance(INTERVAL)
            await asyncio.wait([reading], timeout=0.02)
        return await reading

    def count(self, name: str, **labels: str) -> float:
        value = self.proxy.proxy.registry.get_sample_value(f"export_proxy_{name}", labels)
        return value or 0.0

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


@asynccontextmanager
async def scene(
    script: Script = (),
    *,
    default: Step = STATE,
    pacing: Mapping[str, Any] = {},
    **sections: list[Any],
) -> AsyncIterator[Scene]:
    clock = FakeClock()
    pacing = {"interval": INTERVAL, **pacing}
    async with RawUpstream(script, default=default, clock=clock) as upstream:
        settings = settings_for(upstream.url, pacing=pacing, **sections)
        async with running(settings, clock) as proxy:
            played = Scene(proxy, upstream, clock)
            try:
                yield played
            finally:
                played.close()
