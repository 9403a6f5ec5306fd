"""What sharing the pace through Redis costs: time a send, and what a second replica adds."""

import asyncio
import re
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.callers import BODY, PATH
from bench.cost import SCRIPT
from bench.findings import Finding, ratio, rounded
from bench.processes import CORES, HOST, LOAD_CORE, Server, api, called, proxy, run, running
from tests.kit.upstream import free_port

_SENDS = 400


async def redis(rounds: int = 7) -> Sequence[Finding]:
    """Measure both."""
    return [*await _added_latency(rounds), await _second_replica(rounds)]


async def _added_latency(rounds: int) -> Sequence[Finding]:
    """Send for one account after the other, none of which has to wait, with Redis and without."""
    medians: tuple[list[float], list[float]] = ([], [])
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        url = await stack.enter_async_context(_redis(LOAD_CORE))
        alone = await stack.enter_async_context(proxy(folder, upstream))
        shared = await stack.enter_async_context(proxy(folder, upstream, store={"url": url}))
        await asyncio.sleep(1)
        calls = await _scripts_run(url)
        for number in range(rounds + 1):
            for server, line in zip((alone, shared), medians, strict=True):
                first = 1 + _SENDS * (number % 2)
                result = await called(server, "serial", accounts=_SENDS, first=first)
                assert result["statuses"] == {"200": _SENDS}, result["statuses"]
                if number:  # the first one warms up
                    line.append(1000 * statistics.median(result["latencies"]))
        calls = (await _scripts_run(url) - calls) / (_SENDS * (rounds + 1))
    without, with_redis = medians
    added = statistics.median(a - b for a, b in zip(with_redis, without, strict=True))
    details = {"memory": rounded(without, 3), "redis": rounded(with_redis, 3)}
    return [
        Finding(scenario="redis", what=what, value=value, target=target, details=details)
        for what, value, target in (
            ("added latency of a send p50, ms", added, 1.0),
            ("calls of Redis a send", calls, 1.1),
        )
    ]


async def _scripts_run(url: str) -> float:
    """Return how many scripts Redis has run; a replica's commands on leases are scripts."""
    said = await run("redis-cli", "-u", url, "info", "commandstats")
    return sum(float(count) for count in re.findall(r"cmdstat_evalsha:calls=(\d+)", said))


async def _second_replica(rounds: int) -> Finding:
    """Forward as much as goes for the same 4,000 accounts, with one replica and with two.

    Here load, API and Redis run wherever there is room, and so take part of what two replicas have.
    """
    rates: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api(core=None))
        url = await stack.enter_async_context(_redis(None))
        replicas = [
            await stack.enter_async_context(
                proxy(folder, upstream, core=core, store={"url": url, "timeout": 2})
            )
            for core in (CORES[0], CORES[-1])
        ]
        await asyncio.sleep(1)
        await _forwarded(replicas)
        for _ in range(rounds):
            for count, line, costs in zip((1, 2), rates, cpu, strict=True):
                used = [server.cpu_seconds() for server in replicas]
                requests = await _forwarded(replicas[:count])
                line.append(requests)
                spent = sum(
                    server.cpu_seconds() - before
                    for server, before in zip(replicas, used, strict=True)
                )
                costs.append(1e6 * spent / requests)
    one, two = rates
    return Finding(
        scenario="redis",
        what="forwarded by 2 replicas / by 1",
        value=ratio(two, one),
        target=1.7,
        at_least=True,
        details={
            "one": one,
            "two": two,
            "microseconds of one": rounded(cpu[0]),
            "microseconds of two": rounded(cpu[1]),
        },
    )


async def _forwarded(replicas: Sequence[Server], seconds: int = 3) -> int:
    """Return how many requests they forward in that time."""
    outputs = await asyncio.gather(
        *(
            run(
                *("wrk", "--threads", "1", "--connections", "16", "--duration", f"{seconds}s"),
                *("--script", SCRIPT, server.url, "--", PATH, "4000", "1", BODY.decode()),
                str(4000 * number // len(replicas)),
                core=None,
            )
            for number, server in enumerate(replicas)
        )
    )
    assert not any("Non-2xx" in output for output in outputs), outputs
    return sum(int(count) for count in re.findall(r"(\d+) requests in", "".join(outputs)))


@asynccontextmanager
async def _redis(core: int | None) -> AsyncIterator[str]:
    """Run a Redis that keeps nothing on disk."""
    port = free_port()
    options = ("--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no")
    async with running("redis-server", *options, core=core):
        await asyncio.sleep(0.5)
        yield f"redis://{HOST}:{port}/0"
