"""A primary behind Sentinel: found by its service's name, and found again after a failover."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.redis import RedisServer
from tests.kit.replicas import CLOCK, Send, all_shared, early, replicas_of, settings_of
from tests.kit.upstream import free_port

INTERVAL = 0.2
SERVICE = "pace"
PASSWORD = "of the primary"
DOWN_AFTER_MS = 1500


@asynccontextmanager
async def sentinel_of(primary: RedisServer, folder: Path) -> AsyncIterator[int]:
    """Run one sentinel that watches `primary`; its port."""
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind {HOST}\ndir {folder}\n"
        f"sentinel monitor {SERVICE} {HOST} {primary.port} 1\n"
        f'sentinel auth-pass {SERVICE} "{PASSWORD}"\n'
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
        f"sentinel failover-timeout {SERVICE} 2000\n"
    )
    child = await asyncio.create_subprocess_exec(
        "redis-sentinel", str(config), stdout=asyncio.subprocess.DEVNULL
    )
    client = Redis(host=HOST, port=port)
    try:

        async def sees_a_replica() -> bool:
            with suppress(RedisError, OSError):
                state = (await cast("Any", client.sentinel_masters()))[SERVICE]
                return int(state["num-slaves"]) == 1
            return False

        await until(sees_a_replica, within=30)
        yield port
    finally:
        await client.aclose()
        child.kill()
        await child.wait()


@pytest.mark.needs("redis-server", "redis-sentinel")
async def test_failover_is_an_outage_that_ends_by_itself(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(2):
            server = RedisServer(tmp_path, password=PASSWORD)
            stack.push_async_callback(server.stop)
            await server.start()
            await server.client.config_set("masterauth", PASSWORD)
            await server.client.config_set("repl-diskless-sync-delay", "0")
            servers.append(server)
        primary, secondary = servers
        await cast("Any", secondary.client.replicaof(HOST, primary.port))
        port = await stack.enter_async_context(sentinel_of(primary, tmp_path))
        nobody = free_port()
        password = PASSWORD.replace(" ", "%20")
        url = f"redis+sentinel://:{password}@{HOST}:{nobody},{HOST}:{port}/{SERVICE}/0"
        settings = settings_of(url, interval=INTERVAL, replicas=2)
        replicas = await stack.enter_async_context(replicas_of(settings, 2))
        await all_shared(replicas)
        callers = [r.caller(r.queue(), f"{r.number}-{n}") for n in range(40) for r in replicas]
        sends = replicas[0].sends
        await until(lambda: _are_sent(sends, 3))
        await primary.kill()
        await until(lambda: _is_down(replicas))
        await all_shared(replicas, within=30)
        returned = CLOCK.monotonic()
        assert await secondary.client.exists(*(await _keys(secondary)))
        await until(lambda: _are_sent(sends, 3, since=returned))
        for caller in callers:
            caller.cancel()
        assert early([send.at for send in sends if send.at >= returned], INTERVAL) == 0
        assert len({send.caller for send in sends}) == len(sends)


async def _are_sent(sends: list[Send], count: int, *, since: float = 0.0) -> bool:
    return sum(send.at >= since for send in sends) >= count


async def _is_down(replicas: list[Any]) -> bool:
    return not any(replica.is_shared for replica in replicas)


async def _keys(server: RedisServer) -> list[str]:
    return list(await server.everything())
