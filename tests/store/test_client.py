"""The store's URL says where the store is, and how to reach it."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.clock import SystemClock
from proxy.settings import Store
from proxy.store.connection import Connection
from proxy.telemetry.metrics import Metrics


def test_sentinels_are_where_the_url_says() -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            url = "redis+sentinel://:pw@s1,[::1],s3:1/pace/2"
            connection = Connection(
                Store.model_validate({"url": url}),
                clock=SystemClock(),
                metrics=Metrics(CollectorRegistry()),
                spawn=tasks.create_task,
            )
            pool: Any = connection.client.redis.connection_pool
            pools = [client.connection_pool for client in pool.sentinel_manager.sentinels]
            places = [(p.connection_kwargs["host"], p.connection_kwargs["port"]) for p in pools]
            assert places == [("s1", 26379), ("::1", 26379), ("s3", 1)]
            await connection.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("redis://h:1/2", "h", 1, False),
        ("rediss://user:pw@h:6380/2", "h", 6380, True),
    ],
)
async def test_url_says_where_and_how(url: str, host: str, port: int, *, tls: bool) -> None:
    async with asyncio.TaskGroup() as tasks:
        connection = Connection(
            Store.model_validate({"url": url}),
            clock=SystemClock(),
            metrics=Metrics(CollectorRegistry()),
            spawn=tasks.create_task,
        )
        pool: Any = connection.client.redis.connection_pool
        made = pool.make_connection()
        assert (made.host, made.port, made.db) == (host, port, 2)
        assert type(made).__name__ == ("SSLConnection" if tls else "Connection")
        if tls:
            assert made.ssl_context.check_hostname
            assert made.ssl_context.cert_reqs.name == "CERT_REQUIRED"
        await connection.close()
