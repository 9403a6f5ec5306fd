"""Replicas that share a store have different numbers; without one they find them by refusals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from proxy.pacing.leases import HoldLeft
from proxy.settings import Store
from proxy.store.connection import Connection
from proxy.store.numbers import ReplicaNumber
from proxy.telemetry.metrics import Metrics
from tests.kit.clock import FakeClock
from tests.kit.process import until
from tests.kit.redis import redis_server
from tests.kit.replicas import replicas_of, settings_of

INTERVAL = 0.2
KEY = "export-proxy:2:replicas"
URL = "redis://nowhere.invalid:6379/0"


@asynccontextmanager
async def numbers(
    count: int, *randoms: float
) -> AsyncIterator[tuple[FakeClock, list[ReplicaNumber]]]:
    """The numbers of replicas that never reached a store; each random value serves one of them."""
    clock = FakeClock()
    async with asyncio.TaskGroup() as tasks:
        settings = Store.model_validate({"url": URL, "replicas": count})
        connection = Connection(
            settings, clock=clock, metrics=Metrics(CollectorRegistry()), spawn=tasks.create_task
        )
        yield clock, [_number(connection, clock, value) for value in randoms]
        await connection.close()


def _number(connection: Connection, clock: FakeClock, value: float) -> ReplicaNumber:
    return ReplicaNumber(connection, f"r{value}", clock=clock, random=lambda: value)


async def test_replica_that_is_refused_takes_another_number() -> None:
    async with numbers(2, 0.0, 0.4) as (clock, (first, second)):
        assert (first.number, second.number) == (0, 0)
        await clock.advance(1.0)
        second.refused()
        assert (first.number, second.number) == (0, 1)
        second.refused()  # refusals come in groups
        assert second.number == 1


@pytest.mark.parametrize("value", [0.0, 0.5, 0.999])
async def test_every_other_number_can_be_taken_and_none_is_kept(value: float) -> None:
    async with numbers(3, value) as (clock, (it,)):
        for _ in range(5):
            await clock.advance(1.0)
            before = it.number
            it.refused()
            assert it.number != before
            assert 0 <= it.number < 3


async def test_single_replica_may_send_at_any_moment() -> None:
    async with numbers(1, 0.0) as (_, (it,)):
        assert it.next_in_phase(12.345, INTERVAL) == 12.345


async def test_replicas_of_one_store_have_different_numbers_and_keep_them(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        settings = settings_of(server.url, interval=INTERVAL, replicas=3)
        async with replicas_of(settings, 3) as replicas:

            async def are_claimed() -> bool:
                return bool(
                    await server.client.type(KEY) == b"hash"
                    and await cast("Any", server.client.hlen(KEY)) == 3
                )

            await until(are_claimed)
            claimed = [replica.leases.number for replica in replicas]
            assert sorted(claimed) == [0, 1, 2]
            await server.client.set(KEY, "of another type")
            await until(are_claimed)
            assert [replica.leases.number for replica in replicas] == claimed
            await server.kill()
            replicas[0].leases.held("export-proxy:2:{x}", "", HoldLeft(1.0, 1.0))
            assert [replica.leases.number for replica in replicas] == claimed


async def test_replicas_beyond_the_configured_ones_share_a_number(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        settings = settings_of(server.url, interval=INTERVAL, replicas=2)
        async with replicas_of(settings, 3) as replicas:
            assert {replica.leases.number for replica in replicas} == {0, 1}
