"""Replicas on one Redis while a paced route is renamed or divided."""

import asyncio
from pathlib import Path

import pytest

from proxy.settings import Route
from proxy.store.script import LEASE
from tests.kit.redis import redis_server
from tests.kit.replicas import Replica, early, pause, replicas_of, settings_of

INTERVAL = 0.2
WHOLE = [Route(name="exports", paths=("/exports/**", "/jobs/**"), paced=True)]
RENAMED = [Route(name="batch", paths=("/jobs/**", "/exports/**"), paced=True)]
DIVIDED = [
    Route(name="exports", paths=("/exports/**",), paced=True),
    Route(name="jobs", paths=("/jobs/**",), paced=True),
]
UNPACED = [Route(name="exports", paths=("/exports/**", "/jobs/**"))]


def sent(replicas: list[Replica]) -> list[float]:
    return [send.at for send in replicas[0].sends]


async def test_renamed_route_keeps_its_pace_while_the_name_rolls_over_two_replicas(
    tmp_path: Path,
) -> None:
    async with redis_server(tmp_path) as server:
        old = settings_of(server.url, interval=INTERVAL, replicas=2)
        old = old.model_copy(update={"routes": tuple(WHOLE)})
        new = old.model_copy(update={"routes": tuple(RENAMED)})
        async with replicas_of(old, 2) as (here, there):
            callers = [r.caller(r.queue()) for _ in range(4) for r in (here, there)]
            await pause(1.5 * INTERVAL)
            here.accounts.apply(new)
            callers += [here.caller(here.queue(route="batch")) for _ in range(3)]
            callers += [there.caller(there.queue()) for _ in range(3)]
            await pause(3 * INTERVAL)
            there.accounts.apply(new)
            callers += [there.caller(there.queue(route="batch")) for _ in range(2)]
            assert await asyncio.gather(*callers) == [None] * 16
            assert early(sent([here]), INTERVAL) == 0


@pytest.mark.parametrize("waiters", [0, 3])
async def test_divided_route_goes_on_at_its_pace(waiters: int, tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        old = settings_of(server.url, interval=INTERVAL, replicas=2)
        old = old.model_copy(update={"routes": tuple(WHOLE)})
        new = old.model_copy(update={"routes": tuple(DIVIDED)})
        async with replicas_of(old, 2) as (here, there):
            assert await here.export(here.queue()) is None
            callers = [here.caller(here.queue()) for _ in range(waiters)]
            await pause(0.5 * INTERVAL)
            for replica in (here, there):
                replica.accounts.apply(new)
            assert await there.export(there.queue(route="jobs")) is None
            assert await asyncio.gather(*callers) == [None] * waiters
            first, *rest = sent([here])
            assert min(rest) >= first + INTERVAL - 1e-4


@pytest.mark.parametrize("routes", [DIVIDED, UNPACED])
async def test_replica_with_new_routes_keeps_no_lease_of_the_old_ones(
    routes: list[Route], tmp_path: Path
) -> None:
    async with redis_server(tmp_path) as server:
        old = settings_of(server.url, interval=INTERVAL, replicas=2)
        old = old.model_copy(update={"routes": tuple(WHOLE)})
        new = old.model_copy(update={"routes": tuple(routes)})
        async with replicas_of(old, 2) as (here, there):
            for _ in range(2):
                assert await here.export(here.queue()) is None
            await pause(0.5 * INTERVAL)  # the lease is kept: requests come often
            here.accounts.apply(new)
            async with asyncio.timeout(LEASE / 2):
                assert await there.export(there.queue()) is None
