"""Slow callers, for a minute: whether the others notice, and each is let go by its deadline.

Two proxies run side by side before one API; one of them is held by 200 connections that never end
their heads and 200 that never end their bodies (slowhttptest), renewed as they are closed. Requests
go to the one and the other in turn; each second gives two 99th percentiles and their ratio.

    python -m bench.slow --seconds 60
"""

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.client import RawConnection
from tests.kit.listener import HOST
from tests.kit.process import document_for, serving
from tests.kit.upstream import RawUpstream

CALLERS = 200
DEADLINE = 10.0  # the default of header_timeout and body_timeout
GRACE = 3.0  # in which the tool starts, connects, and looks, once a second
HIGHEST_RATIO = 1.5
PATH = "/api/v2/users/me"
GET = f"GET {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a\r\n\r\n".encode()
# The tool has no option for Authorization, and writes a cookie as it is given.
ATTACKS = {
    "slow headers": ("-H",),
    "slow body": ("-B", "-s", "8192", "-j", "a=b\r\nAuthorization: Bearer a"),
}


@dataclass(slots=True)
class Attack:
    """One kind of slow callers, again and again."""

    name: str
    rounds: int = 0
    longest: float = 0.0
    left_open: list[str] = field(default_factory=list)

    async def run(self, port: int, until: float) -> None:
        while time.monotonic() < until:
            begun = time.monotonic()
            tool = await asyncio.create_subprocess_exec(
                *("slowhttptest", "-u", f"http://{HOST}:{port}{PATH}", "-c", str(CALLERS)),
                *("-r", str(CALLERS), "-i", "1", "-l", "60", "-p", "5", "-v", "1"),
                *ATTACKS[self.name],
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said = (await tool.communicate())[0].decode()
            self.rounds += 1
            self.longest = max(self.longest, time.monotonic() - begun)
            if "No open connections left" not in said:
                self.left_open.append(re.sub(r"\x1b\[[0-9;]*m", "", said))


async def timed(connection: RawConnection) -> float:
    begun = time.perf_counter()
    await connection.send(GET)
    answer = await connection.read_response()
    assert answer.status == 200
    return time.perf_counter() - begun


def p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def measure(ports: Sequence[int], seconds: float) -> list[tuple[float, float]]:
    """Ask both in turn; return a pair of 99th percentiles for each second."""
    pairs = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        second = time.monotonic() + 1
        async with AsyncExitStack() as stack:
            left, right = [
                await stack.enter_async_context(await RawConnection.open(HOST, port))
                for port in ports
            ]
            times: tuple[list[float], list[float]] = ([], [])
            while time.monotonic() < second:
                times[0].append(await timed(left))
                times[1].append(await timed(right))
        pairs.append((p99(times[0]), p99(times[1])))
    return pairs


async def run(seconds: float) -> bool:
    attacks = [Attack(name) for name in ATTACKS]
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(RawUpstream())
        folders = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slow-"))) for _ in range(2)
        ]
        quiet, attacked = [
            await stack.enter_async_context(serving(folder, document_for(api.url)))
            for folder in folders
        ]
        ports = (quiet.port, attacked.port)
        await measure(ports, 2)
        async with asyncio.TaskGroup() as tasks:
            for attack in attacks:
                tasks.create_task(attack.run(attacked.port, time.monotonic() + seconds))
            await asyncio.sleep(1)
            pairs = await measure(ports, seconds - 1)
    ratio = statistics.median(right / left for left, right in pairs)
    print(
        f"{len(pairs)} pairs; p99 without {1000 * statistics.median(a for a, _ in pairs):.2f} ms,"
        f" with {1000 * statistics.median(b for _, b in pairs):.2f} ms (medians)"
    )
    print(f"median ratio {ratio:.2f}, at most {HIGHEST_RATIO}")
    is_good = ratio <= HIGHEST_RATIO
    for attack in attacks:
        is_good &= not attack.left_open and attack.longest <= DEADLINE + GRACE
        print(
            f"{attack.name}: {attack.rounds} rounds of {CALLERS}, all closed"
            f" {attack.longest:.1f} s after the first was opened, at the latest"
        )
        print(*attack.left_open, sep="\n", end="")
    print("ok" if is_good else "FAILED")
    return is_good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Slow callers against everybody else.")
    parser.add_argument("--seconds", type=float, default=60)
    sys.exit(not asyncio.run(run(parser.parse_args().seconds)))
