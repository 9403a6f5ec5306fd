"""What a scrape costs with many accounts, and whether callers notice it.

A thousand managed accounts send in pairs, so that every other request waits for its slot. For a
while nobody scrapes; then scrape follows scrape without a pause. `send_lateness_seconds` of the two
times is compared; a scrape's size and CPU time are measured when all is quiet again.

    python -m bench.scrape --accounts 1000 --seconds 20
"""

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from pathlib import Path

from aiohttp import web

from bench.findings import Finding, table
from bench.processes import HOST, LOAD_CORE, Proxy, Server, api, proxy

HIGHEST_LATENESS = 0.008
PAIR_EVERY = 8.0  # seconds; with 1000 accounts that is 250 requests a second
QUIET_SCRAPES = 10
OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
BODY = b'{"mediaType": "voice"}'
# To parse it all would stop the callers for so long that they would then come in a burst.
_BUCKET = re.compile(
    r'^export_proxy_send_lateness_seconds_bucket{route="exports",le="(\S+)"} (\S+)', re.MULTILINE
)


@asynccontextmanager
async def login_server() -> AsyncIterator[Server]:
    """Give everybody a token for a day."""

    async def issue(_: web.Request) -> web.Response:
        token = {"access_token": f"t{random.random()}", "token_type": "bearer"}
        return web.json_response({**token, "expires_in": 86_400})

    application = web.Application()
    application.router.add_post("/oauth/token", issue)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        yield Server(runner.addresses[0][1], os.getpid())
    finally:
        await runner.cleanup()


async def send_pairs(port: int, key: str, *, after: float, until: float) -> None:
    """Send two exports at once, again and again; the second waits for the first one's interval."""
    head = (
        "POST /api/v2/recordings/exports HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    await asyncio.sleep(after)  # spread evenly, or they would come in bursts
    connections = [await asyncio.open_connection(HOST, port) for _ in range(2)]
    while time.monotonic() < until:
        begun = time.monotonic()
        for _, writer in connections:
            writer.write(head.encode() + BODY)
        for reader, _ in connections:
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            fields = dict(line.lower().split(b": ", 1) for line in answer.splitlines()[1:-1])
            await reader.readexactly(int(fields[b"content-length"]))
        await asyncio.sleep(max(0.0, begun + PAIR_EVERY - time.monotonic()))
    for _, writer in connections:
        writer.close()


async def scrape(server: Proxy) -> bytes:
    """Scrape as Prometheus does."""
    reader, writer = await asyncio.open_connection(HOST, server.process.admin_port, limit=2**26)
    fields = "".join(f"{name}: {value}\r\n" for name, value in OPEN_METRICS.items())
    head = f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{fields}\r\n"
    writer.write(head.encode())
    answer = await reader.read()
    writer.close()
    head_bytes, _, body = answer.partition(b"\r\n\r\n")
    assert head_bytes.startswith(b"HTTP/1.1 200"), head_bytes
    return body


@dataclass(frozen=True, slots=True)
class Lateness:
    """How many sends were how late so far, by upper bound."""

    counts: Mapping[float, float]

    @classmethod
    async def read(cls, server: Proxy) -> "Lateness":
        found = _BUCKET.findall((await scrape(server)).decode())
        return cls({float(bound): float(count) for bound, count in found})

    def since(self, earlier: "Lateness") -> "Lateness":
        return Lateness({le: n - earlier.counts.get(le, 0.0) for le, n in self.counts.items()})

    @property
    def total(self) -> float:
        return self.counts[inf]

    def quantile(self, share: float) -> float:
        """Return the bound under which that share of the sends was, in between by proportion."""
        wanted, low, below = share * self.total, 0.0, 0.0
        for bound, count in sorted(self.counts.items()):
            if count >= wanted:
                return (
                    bound
                    if bound == inf
                    else low + (bound - low) * (wanted - below) / max(1, count - below)
                )
            low, below = bound, count
        return inf


async def scrapes(accounts: int = 1000, seconds: float = 20) -> Sequence[Finding]:
    """Scrape without a pause while a thousand accounts send."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            return await measure(accounts, seconds, Path(folder))
    finally:
        os.sched_setaffinity(0, before)


async def measure(accounts: int, seconds: float, folder: Path) -> list[Finding]:
    async with api() as target, login_server() as login:
        configured = [
            {
                "name": f"account-{number}",
                "client_id": f"client-{number}",
                "client_secret": "any",
                "keys": [f"sha256:{sha256(key_of(number).encode()).hexdigest()}"],
            }
            for number in range(accounts)
        ]
        async with proxy(
            folder,
            target,
            upstream={"login_url": login.url},
            accounts=configured,
            limits={"header_timeout": 60},
        ) as server:
            return await observe(server, accounts, seconds)


async def observe(server: Proxy, accounts: int, seconds: float) -> list[Finding]:
    until = time.monotonic() + PAIR_EVERY + 2 * seconds + 2
    took = []
    async with asyncio.TaskGroup() as callers:
        for number in range(accounts):
            after = PAIR_EVERY * number / accounts
            callers.create_task(
                send_pairs(server.process.port, key_of(number), after=after, until=until)
            )
        await asyncio.sleep(PAIR_EVERY + 2)  # everybody has sent once
        begun, cpu = await Lateness.read(server), server.cpu_seconds()
        await asyncio.sleep(seconds)
        unwatched, cpu = await Lateness.read(server), server.cpu_seconds() - cpu
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            at = time.monotonic()
            await scrape(server)
            took.append(time.monotonic() - at)
        watched = await Lateness.read(server)
    used = server.cpu_seconds()
    sizes = [len(await scrape(server)) for _ in range(QUIET_SCRAPES)]
    used = (server.cpu_seconds() - used) / QUIET_SCRAPES
    series = sum(not line.startswith("#") for line in (await scrape(server)).decode().splitlines())
    quiet, scraped = unwatched.since(begun), watched.since(unwatched)
    return [
        Finding(
            scenario="scrape",
            what="lateness p99 without scrapes, ms",
            value=round(1000 * quiet.quantile(0.99), 1),
            target=1000 * HIGHEST_LATENESS,
            details={"cpu share": round(cpu / seconds, 2), "sends": quiet.total},
        ),
        Finding(
            scenario="scrape",
            what="lateness p99 during scrapes, ms",
            value=round(1000 * scraped.quantile(0.99), 1),
            target=1000 * HIGHEST_LATENESS,
            details={"scrapes": len(took), "seconds each": round(sum(took) / len(took), 2)},
        ),
        Finding(
            scenario="scrape",
            what="CPU time of a scrape, s",
            value=round(used, 2),
            target=1.0,
            details={"bytes": sizes[-1], "series": series},
        ),
    ]


def key_of(number: int) -> str:
    return f"key-of-{number}-k"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure scrapes with many accounts.")
    parser.add_argument("--accounts", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    wanted = parser.parse_args()
    findings = asyncio.run(scrapes(wanted.accounts, wanted.seconds))
    print(table(findings))
    print(json.dumps([dict(finding.details) for finding in findings]))
    return 0 if all(finding.is_met for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
