"""The load of the paced measurements: callers on raw connections, in a process of their own.

    python -m bench.callers --port P --mode MODE --accounts A --callers C --seconds S

Each account has so many callers, each with a connection. The modes:

    steady   each caller asks again when it is answered, until the time is over
    random   one request after the other at `rate` a second, each of an account drawn at random
    serial   one caller, which asks for one account after the other
    burst    everybody asks once, at once; of `leaving` (a share) nobody waits longer than a second
    hold     everybody asks once, and waits until this process is ended

It prints a line of JSON when all callers are there, and another one with what they got.
"""

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, cast

import uvloop

BODY = b'{"mediaType": "voice", "conversationId": "5f1b6ac0-5c3e-4b1a-9d0f-3f6f0c8a2f10"}'
PATH = "/api/v2/recordings/exports"
_HANGS_UP_AFTER = 1.0  # seconds after which those who leave hang up


class Connection(asyncio.Protocol):
    """A caller's connection: one request at a time."""

    def __init__(self, request_id: str = "") -> None:
        self._fields = f"X-Request-Id: {request_id}\r\n" if request_id else ""
        self._received = b""
        self._answer: asyncio.Future[int] | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._received) < end + 4 + length:
            return
        self._received = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(int(head.split(b" ", 2)[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.is_lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    async def ask(self, account: int) -> int:
        """Send a request of that account and return the status, 0 for a lost connection."""
        self._answer = asyncio.get_running_loop().create_future()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nAccept: application/json\r\n"
            "User-Agent: PureCloud SDK/python\r\nContent-Type: application/json\r\n"
            f"{self._fields}"
            f"Authorization: Bearer caller-{account}\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        self._transport.write(head.encode() + BODY)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


class Callers:
    """Everybody who calls, and what they got."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._opening = asyncio.Semaphore(64)
        self._statuses: Counter[int] = Counter()
        self._latencies: list[float] = []
        self._last = 0.0

    async def run(self) -> dict[str, Any]:
        modes = {
            "steady": self._steady,
            "random": self._random,
            "serial": self._serial,
            "burst": self._burst,
            "hold": self._hold,
        }
        begun = await modes[self._options.mode]()
        return {
            "statuses": self._statuses,
            "latencies": self._latencies,
            "seconds": self._last - begun,
        }

    async def _ask(self, connection: Connection, account: int) -> int:
        begun = time.monotonic()
        status = await connection.ask(account)
        self._statuses[status] += 1
        if status == 200:
            self._last = time.monotonic()
            self._latencies.append(self._last - begun)
        return status

    async def _open(self) -> Connection:
        async with self._opening:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                partial(Connection, self._options.id), "127.0.0.1", self._options.port
            )
            return connection

    async def _everybody(self) -> Sequence[tuple[Connection, int]]:
        """Connect; return the callers, those of one account apart from each other."""
        options = self._options
        accounts = [
            options.first + account
            for _ in range(options.callers)
            for account in range(options.accounts)
        ]
        connections = await asyncio.gather(*(self._open() for _ in accounts))
        return list(zip(connections, accounts, strict=True))

    async def _steady(self) -> float:
        callers = await self._everybody()
        _say({"ready": len(callers)})
        begun = time.monotonic()
        spread = self._options.spread / len(callers)

        async def call(number: int, connection: Connection, account: int) -> None:
            await asyncio.sleep(number * spread)
            while time.monotonic() < begun + self._options.seconds:
                if not await self._ask(connection, account):
                    return

        await self._until_over(
            [call(number, *caller) for number, caller in enumerate(callers)],
            begun + self._options.seconds,
        )
        return begun

    async def _random(self) -> float:
        options = self._options
        idle: list[Connection] = []
        _say({"ready": 0})
        begun = time.monotonic()

        async def call(account: int) -> None:
            while idle and idle[-1].is_lost:
                idle.pop()
            connection = idle.pop() if idle else await self._open()
            if await self._ask(connection, account):
                idle.append(connection)

        async with asyncio.TaskGroup() as tasks:
            for number in range(int(options.rate * options.seconds)):
                await asyncio.sleep(begun + number / options.rate - time.monotonic())
                tasks.create_task(call(options.first + random.randrange(options.accounts)))
        return begun

    async def _serial(self) -> float:
        connection = await self._open()
        _say({"ready": 1})
        begun = time.monotonic()
        for account in range(self._options.accounts):
            await self._ask(connection, self._options.first + account)
        return begun

    async def _burst(self) -> float:
        callers = await self._everybody()
        _say({"ready": len(callers)})
        begun = time.monotonic()
        leaving = int(self._options.leaving * self._options.callers)

        async def call(number: int, connection: Connection, account: int) -> None:
            # Every other one of an account, until so many have left.
            place = number // self._options.accounts
            if place % 2 and place // 2 < leaving:
                asyncio.get_running_loop().call_later(_HANGS_UP_AFTER, connection.close)
            await self._ask(connection, account)

        await self._until_over(
            [call(number, *caller) for number, caller in enumerate(callers)],
            begun + self._options.seconds,
        )
        return begun

    async def _hold(self) -> float:
        callers = await self._everybody()
        begun = time.monotonic()
        tasks = [
            asyncio.get_running_loop().create_task(self._ask(connection, account))
            for connection, account in callers
        ]
        await asyncio.sleep(1)
        _say({"ready": len(callers)})
        await asyncio.wait(tasks, timeout=self._options.seconds)
        return begun

    async def _until_over(self, calls: Sequence[Coroutine[Any, Any, None]], end: float) -> None:
        """Run the calls, and leave those alone that are still unanswered at the end."""
        tasks = [asyncio.get_running_loop().create_task(call) for call in calls]
        await asyncio.wait(tasks, timeout=end - time.monotonic())


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


async def _main(options: argparse.Namespace) -> None:
    _say(await Callers(options).run())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Callers on raw connections.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--accounts", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--id", default="", help="the X-Request-Id of all requests")
    parser.add_argument("--leaving", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_main(_options())))
