"""How exact the pace is under load, and the cost of waiting callers."""

import asyncio
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path

from bench.findings import Finding
from bench.processes import Proxy, Server, api, ask, bare, called, calling, proxy

_INTERVAL = 0.5
_PATIENT = {"max_wait": 3600.0}
_BUCKET = re.compile(
    r'^export_proxy_send_lateness_seconds_bucket\{.*le="([^"]+)".*\} (\S+)$', re.MULTILINE
)
_EARLY = re.compile(r"^export_proxy_early_sends_total\{.*\} (\S+)$", re.MULTILINE)
Buckets = Mapping[float, float]


async def exactness(accounts: int = 500, seconds: float = 30) -> Sequence[Finding]:
    """Let two callers of each of 500 accounts ask all the time, for 1,000 sends a second."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        server = await stack.enter_async_context(proxy(folder, upstream, pacing=_PATIENT))
        callers = await stack.enter_async_context(
            calling(
                server,
                "steady",
                accounts=accounts,
                callers=2,
                spread=2 * _INTERVAL,
                seconds=seconds + 6,
            )
        )
        await asyncio.sleep(4)
        late_before = await _lateness(server)
        await ask(upstream, "/control/stamp")
        await asyncio.sleep(seconds)
        stamps = (await ask(upstream, "/control/report")).values()
        late = _between(late_before, await _lateness(server))
        early = _early(await server.metrics())
        statuses = (await callers.result())["statuses"]
    sent = sum(len(times) - 1 for times in stamps)
    paced = sum((times[-1] - times[0]) / _INTERVAL for times in stamps)
    details = {"statuses": statuses, "sent": sent, "late": {str(k): v for k, v in late.items()}}

    def finding(what: str, value: float, target: float, *, at_least: bool = False) -> Finding:
        return Finding(
            scenario="exactness",
            what=what,
            value=value,
            target=target,
            at_least=at_least,
            details=details,
        )

    return [
        finding("early sends", early, 0),
        finding("refused callers", sum(statuses.values()) - statuses["200"], 0),
        finding("lateness p50, ms", 1000 * _quantile(late, 0.5), 1),
        finding("lateness p99, ms", 1000 * _quantile(late, 0.99), 10),
        finding("goodput / pace", sent / paced, 0.995, at_least=True),
    ]


async def crowd(callers: int = 2000, interval: float = 0.02) -> Sequence[Finding]:
    """Let 2,000 exports of one account come at once: how long all of them take."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        server = await stack.enter_async_context(
            proxy(folder, upstream, pacing={"interval": interval})
        )
        await ask(upstream, "/control/stamp")
        before = server.memory()
        callers_at_work = await stack.enter_async_context(
            calling(server, "burst", accounts=1, callers=callers, seconds=4 * callers * interval)
        )
        await asyncio.sleep(2)
        (state,) = json.loads((await server.process.ask("/status.json")).body)["accounts"]
        waiting = sum(route["queue_depth"] for route in state["routes"])
        each = (server.memory() - before) / waiting
        statuses = (await callers_at_work.result())["statuses"]
        (stamps,) = (await ask(upstream, "/control/report")).values()
        early = _early(await server.metrics())
    details = {"statuses": statuses, "waiting": waiting}
    return [
        Finding(scenario="crowd", what=what, value=value, target=target, details=details)
        for what, value, target in (
            ("refused of 2,000 at once", callers - statuses.get("200", 0), 0),
            ("early sends", early, 0),
            ("time for all / ideal", (stamps[-1] - stamps[0]) / interval / (callers - 1), 1.03),
            ("kB of a waiting caller", each / 1024, 32),
        )
    ]


async def refused(callers: int = 5000, seconds: float = 10) -> Sequence[Finding]:
    """Refuse 5,000 requests of one account: what a quiet account notices, and the log."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        server = await stack.enter_async_context(
            proxy(folder, upstream, pacing={"interval": 0.02, "max_wait": 0})
        )

        async def quiet(name: str) -> tuple[Mapping[str, int], float]:
            """Return the statuses of the quiet account, and the p99 of its answers."""
            got = await called(server, "random", first=2, rate=25, seconds=seconds, id=name)
            return got["statuses"], sorted(got["latencies"])[int(0.99 * len(got["latencies"]))]

        _, alone = await quiet("alone")
        async with calling(server, "random", rate=callers / seconds, seconds=seconds) as crowd:
            statuses, beside = await quiet("beside")
            crowd_statuses = (await crowd.result())["statuses"]
    logged = [line["request_id"] for line in server.process.logged("request")].count("beside")
    sent = sum(statuses.values())
    details = {"crowd": crowd_statuses, "quiet": statuses, "p99": (alone, beside)}
    return [
        Finding(scenario="refused", what=what, value=value, target=target, details=details)
        for what, value, target in (
            ("refused of the quiet account", sent - statuses["200"], 0),
            ("growth of the p99 of its answers, ms", 1000 * (beside - alone), 50),
            ("lines it lacks in the log", sent - logged, 0),
        )
    ]


async def memory(callers: int = 10_000) -> Sequence[Finding]:
    """Let 10,000 callers wait: what each takes, and whether the sends of others become late."""
    return [*await _memory_of(callers), await _lateness_beside(callers)]


async def _memory_of(callers: int) -> Sequence[Finding]:
    sizes: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        servers: dict[str, Server] = {
            "bare": await stack.enter_async_context(bare(None)),
            "ours": await stack.enter_async_context(
                # A pace at which nobody is sent while this is measured.
                proxy(folder, upstream, pacing={"interval": 3600, "max_wait": 604_800})
            ),
        }
        for name, server in servers.items():
            before = server.memory()
            async with calling(server, "hold", accounts=callers // 100, callers=100, seconds=60):
                await asyncio.sleep(1)
                sizes[name] = (server.memory() - before) / callers
            await asyncio.sleep(1)
    return [
        Finding(scenario="memory", what=what, value=value, target=target, details=sizes)
        for what, value, target in (
            ("kB of a waiting caller", sizes["ours"] / 1024, 24),
            ("the same / in a handler that only waits", sizes["ours"] / sizes["bare"], 1.25),
        )
    ]


async def _lateness_beside(callers: int, seconds: float = 15) -> Finding:
    accounts = callers // 100
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        server = await stack.enter_async_context(proxy(folder, upstream, pacing=_PATIENT))
        await stack.enter_async_context(
            calling(
                server, "steady", accounts=accounts, callers=100, spread=5, seconds=seconds + 30
            )
        )
        await asyncio.sleep(10)
        before = await _lateness(server)
        await asyncio.sleep(seconds)
        late = _between(before, await _lateness(server))
    return Finding(
        scenario="memory",
        what="lateness p99 beside 10,000 waiting callers, ms",
        value=1000 * _quantile(late, 0.99),
        target=10,
        details={"late": {str(bound): count for bound, count in late.items()}},
    )


async def _lateness(server: Proxy) -> Buckets:
    """Return how many sends were late by at most so many seconds."""
    buckets: defaultdict[float, float] = defaultdict(float)
    for bound, count in _BUCKET.findall(await server.metrics()):
        buckets[float(bound)] += float(count)
    return buckets


def _between(before: Buckets, after: Buckets) -> Buckets:
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def _early(metrics: str) -> float:
    counts = _EARLY.findall(metrics)
    assert counts
    return sum(map(float, counts))


def _quantile(buckets: Buckets, share: float) -> float:
    """Return a quantile as Prometheus does: linear within a bucket."""
    wanted = share * max(buckets.values())
    low, below = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= wanted:
            part = (wanted - below) / (count - below) if count > below else 1.0
            return low + (bound - low) * part if bound < inf else inf
        low, below = bound, count
    return inf
