"""What a request costs: CPU time of the process, ours against another's, round by round."""

import asyncio
import re
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from bench.callers import BODY, PATH
from bench.findings import Finding, ratio, rounded
from bench.processes import HOST, Server, api, ask, bare, calling, proxy, run

SCRIPT = str(Path(__file__).with_name("load.lua"))
_PATH = "/api/v2/users/me?expand=presence,routingStatus"
_COUNT = "/control/count"
_ROUNDS = 9
_SECONDS = 3
_CALLERS = 16  # so that none comes near its max_in_flight
_CONNECTIONS = 16


async def cost_of(server: Server, *load: str, seconds: int, connections: int) -> float:
    """Return the microseconds of CPU time a request costs while wrk loads the server."""
    begun = server.cpu_seconds()
    said = await run(
        *("wrk", "--threads", "1", "--connections", str(connections)),
        *("--duration", f"{seconds}s", "--script", SCRIPT, f"http://{HOST}:{server.port}"),
        *("--", *load),
    )
    used = server.cpu_seconds() - begun
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    count = re.search(r"(\d+) requests in", said)
    assert count is not None, said
    return 1e6 * used / int(count[1])


async def windows_of(
    servers: Sequence[tuple[Server, Server]], *, rounds: int = _ROUNDS, seconds: float = _SECONDS
) -> list[list[float]]:
    """Watch servers that are loaded side by side; return the costs of a request, by window.

    Each comes with the API it forwards to, which counts.
    """
    costs: list[list[float]] = [[] for _ in servers]
    for _ in range(rounds):
        before = [
            (server.cpu_seconds(), await ask(upstream, _COUNT)) for server, upstream in servers
        ]
        await asyncio.sleep(seconds)
        for (server, upstream), (cpu, count), line in zip(servers, before, costs, strict=True):
            requests = await ask(upstream, _COUNT) - count
            line.append(1e6 * (server.cpu_seconds() - cpu) / requests)
    return costs


async def unpaced(rounds: int = _ROUNDS, seconds: int = _SECONDS) -> Sequence[Finding]:
    """Forward on an unpaced route as fast as it goes, against a bare proxy, in turn."""
    load = (_PATH, str(_CALLERS), "1")
    ours: list[float] = []
    theirs: list[float] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        copier = await stack.enter_async_context(bare(upstream))
        measured = await stack.enter_async_context(proxy(folder, upstream))
        for server in (copier, measured):
            await cost_of(server, *load, seconds=1, connections=_CONNECTIONS)
        for _ in range(rounds):
            for server, costs in ((copier, theirs), (measured, ours)):
                costs.append(
                    await cost_of(server, *load, seconds=seconds, connections=_CONNECTIONS)
                )
    return [_against_bare("unpaced", "CPU per request / bare proxy's", ours, theirs, target=1.0)]


async def paced(rounds: int = _ROUNDS, seconds: float = _SECONDS) -> Sequence[Finding]:
    """Forward for 1,000 accounts on the paced route, below their pace, beside a bare proxy.

    Requests come at random, so that some of them have to wait for their slot.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        apis = [await stack.enter_async_context(api()) for _ in range(2)]
        copier = await stack.enter_async_context(bare(apis[0]))
        measured = await stack.enter_async_context(proxy(folder, apis[1]))
        await asyncio.sleep(1)
        for server in (copier, measured):
            await stack.enter_async_context(
                calling(server, "random", accounts=1000, rate=400, seconds=rounds * seconds + 10)
            )
        await asyncio.sleep(3)
        theirs, ours = await windows_of(
            [(copier, apis[0]), (measured, apis[1])], rounds=rounds, seconds=seconds
        )
    what = "CPU per request with 1,000 accounts / bare proxy's"
    return [_against_bare("paced", what, ours, theirs, target=1.0)]


async def growth(rounds: int = 7, seconds: int = 2) -> Sequence[Finding]:
    """Compare a proxy with itself: with many accounts, and with a long queue."""
    return [
        await _growth_of_accounts(rounds, seconds),
        await _growth_of_queue(rounds, seconds),
    ]


async def _growth_of_accounts(rounds: int, seconds: int) -> Finding:
    loads = [(PATH, str(accounts), "1", BODY.decode()) for accounts in (10, 10_000)]
    costs: tuple[list[float], list[float]] = ([], [])
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = await stack.enter_async_context(api())
        proxies = [
            await stack.enter_async_context(
                # A pace that nobody has to wait for.
                proxy(folder, upstream, pacing={"interval": 0.0001})
            )
            for _ in loads
        ]
        for server, load in zip(proxies, loads, strict=True):
            await cost_of(server, *load, seconds=12, connections=8)
        for _ in range(rounds):
            for server, load, line in zip(proxies, loads, costs, strict=True):
                line.append(await cost_of(server, *load, seconds=seconds, connections=8))
    few, many = costs
    return Finding(
        scenario="growth",
        what="CPU per request at 10,000 accounts / at 10",
        value=ratio(many, few),
        target=1.05,
        details={"microseconds": rounded(many), "at 10": rounded(few)},
    )


async def _growth_of_queue(rounds: int, seconds: int) -> Finding:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        served = []
        for callers in (1, 1001):
            upstream = await stack.enter_async_context(api())
            server = await stack.enter_async_context(
                proxy(
                    folder,
                    upstream,
                    pacing={"interval": 0.004, "max_wait": 3600, "max_queue": 2000},
                )
            )
            served.append((server, upstream))
            await stack.enter_async_context(
                calling(server, "steady", callers=callers, seconds=rounds * seconds + 20)
            )
        await asyncio.sleep(5)
        empty, full = await windows_of(served, rounds=rounds, seconds=seconds)
    return Finding(
        scenario="growth",
        what="CPU per request with a queue of 1,000 / with an empty one",
        value=ratio(full, empty),
        target=1.05,
        details={"microseconds": rounded(full), "empty": rounded(empty)},
    )


def _against_bare(
    scenario: str, what: str, ours: Sequence[float], theirs: Sequence[float], *, target: float
) -> Finding:
    return Finding(
        scenario=scenario,
        what=what,
        value=ratio(ours, theirs),
        target=target,
        details={"microseconds": rounded(ours), "bare": rounded(theirs)},
    )
