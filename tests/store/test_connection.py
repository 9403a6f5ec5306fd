"""Connections to Redis: their cost, their number, and what callers do to them that leave."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from prometheus_client import CollectorRegistry, generate_latest

from proxy.clock import SystemClock
from proxy.pacing.slot import Refused
from proxy.settings import Store
from proxy.store.client import Address
from proxy.store.connection import PROBE, Connection
from proxy.store.issued_tokens import IssuedToken, SharedTokens
from proxy.store.leases import SharedLeases
from proxy.store.wire import StoreDown
from proxy.telemetry.metrics import Metrics
from tests.kit.fault_proxy import Delay, FaultProxy
from tests.kit.listener import HOST
from tests.kit.process import until
from tests.kit.redis import RedisServer, redis_server
from tests.kit.replicas import (
    CLOCK,
    STORE_TIMEOUT,
    Replica,
    all_shared,
    pause,
    replicas_of,
    settings_of,
)
from tests.kit.stalls import noting_stalls

INTERVAL = 0.1
LOOK_AGAIN = 0.05  # a queue asks about a lease that is overdue
HASH = bytes(range(32))
NOBODYS = ("export-proxy:2:{self-test}", "export-proxy:2:mark", "export-proxy:2:replicas")


@asynccontextmanager
async def deployed(
    folder: Path, count: int, **sections: Any
) -> AsyncIterator[tuple[RedisServer, list[Replica]]]:
    async with redis_server(folder) as server:
        settings = settings_of(server.url, interval=INTERVAL, replicas=count, **sections)
        async with replicas_of(settings, count) as replicas:
            await server.forget_calls()
            yield server, replicas


@asynccontextmanager
async def connected(
    server: RedisServer, *, port: int | None = None
) -> AsyncIterator[tuple[Connection, SharedTokens, asyncio.Task[None]]]:
    """A connection with nothing but a table of tokens, and the task that listens."""
    clock = SystemClock()
    metrics = Metrics(CollectorRegistry())
    async with asyncio.TaskGroup() as tasks:
        spawn: Callable[..., Any] = tasks.create_task
        url = server.url if port is None else f"redis://{HOST}:{port}/0"
        settings = Store.model_validate({"url": url, "timeout": STORE_TIMEOUT})
        connection = Connection(settings, clock=clock, metrics=metrics, spawn=spawn)
        leases = SharedLeases(connection, clock=clock, metrics=metrics, random=lambda: 0.0)
        listening = tasks.create_task(connection.listen(leases.inbox))
        await connection.settled.wait()
        yield connection, SharedTokens(connection, clock=clock, spawn=spawn), listening
        listening.cancel()
        await asyncio.wait([listening])
        await connection.close()


@pytest.mark.timed
@pytest.mark.parametrize(("replicas", "most"), [(1, 1.2), (3, 1.2)])
async def test_send_from_a_queue_takes_about_one_round_trip(
    replicas: int, most: float, tmp_path: Path
) -> None:
    """A report is the next request in the same breath."""
    async with (
        noting_stalls() as stalls,
        deployed(tmp_path, replicas) as (server, running),
    ):
        callers = [r.caller(r.queue(), str(n)) for n in range(18 // replicas) for r in running]
        await asyncio.gather(*callers)
        looks = replicas * stalls.total / LOOK_AGAIN
        assert await server.script_calls() <= 18 * most + replicas + looks


async def test_sends_of_a_replica_alone_take_one_round_trip_each(tmp_path: Path) -> None:
    """A single caller: from the third send on the lease is there before the request."""
    async with deployed(tmp_path, 1) as (server, (here,)):
        for _ in range(30):
            assert await here.export(here.queue()) is None
            await pause(INTERVAL)
        await until(lambda: _has_called(server, 32))
        assert await server.calls("evalsha") <= 1.1 * 30


async def test_kept_lease_is_used_without_a_round_trip(tmp_path: Path) -> None:
    async with deployed(tmp_path, 1) as (server, (here,)):
        for _ in range(3):
            assert await here.export(here.queue()) is None
            await pause(1.2 * INTERVAL)
        server.freeze()
        async with asyncio.timeout(STORE_TIMEOUT / 2):
            assert await here.export(here.queue()) is None
        assert here.is_shared
        server.thaw()


@pytest.mark.timed
async def test_kept_lease_is_given_up_at_once_for_another_replica(tmp_path: Path) -> None:
    async with noting_stalls() as stalls, deployed(tmp_path, 2) as (_, (here, there)):
        for _ in range(3):
            assert await here.export(here.queue()) is None
            await pause(1.2 * INTERVAL)
        begun = CLOCK.monotonic()
        assert await there.export(there.queue()) is None
        assert CLOCK.monotonic() - begun < 0.05 + stalls.total


async def test_kept_lease_is_given_up_when_no_request_comes(tmp_path: Path) -> None:
    async with deployed(tmp_path, 1) as (server, (here,)):
        for _ in range(3):
            assert await here.export(here.queue()) is None
            await pause(1.2 * INTERVAL)
        await until(lambda: _holds(server, here, b""))


async def test_kept_lease_is_given_up_by_a_replica_that_ends(tmp_path: Path) -> None:
    async with deployed(tmp_path, 1) as (server, (here,)):
        for _ in range(3):
            assert await here.export(here.queue()) is None
            await pause(1.2 * INTERVAL)
        assert not await _holds(server, here, b"")
        await here.close()
        assert await _holds(server, here, b"")


async def _holds(server: RedisServer, replica: Replica, who: bytes) -> bool:
    key, field = replica.queue().leased.key, f"holder:{replica.queue().leased.lease_name}"
    return bool(await cast("Any", server.client.hget(key, field)) == who)


async def _has_called(server: RedisServer, times: int) -> bool:
    return await server.script_calls() >= times


async def test_waiting_takes_no_round_trips(tmp_path: Path) -> None:
    """Two hundred wait and ask nothing: the heads of the two queues may ask, and that is all."""
    async with deployed(tmp_path, 2, pacing={"max_queue": 1000}) as (server, (here, there)):
        slot = await here.slot(here.queue())
        here.send(slot)
        slot.report(Refused(5.0))
        callers = [r.caller(r.queue(), str(n)) for n in range(100) for r in (here, there)]
        await pause(0.3)
        await server.forget_calls()
        await pause(1.2)
        assert await server.script_calls() <= 2
        for caller in callers:
            caller.cancel()


async def test_thousand_queues_take_few_connections_and_all_get_a_lease(tmp_path: Path) -> None:
    async with deployed(tmp_path, 1) as (server, (here,)):
        queues = [
            here.accounts.unidentified(b"%d" % n).queue("exports", paced=True) for n in range(1000)
        ]
        assert await asyncio.gather(*map(here.export, queues)) == [None] * 1000
        assert here.is_shared
        clients = await server.client.info("clients")
        assert clients["connected_clients"] <= 8 + 1 + 1  # its own, its ear, and the test's


async def test_scripts_that_were_flushed_are_loaded_again(tmp_path: Path) -> None:
    async with deployed(tmp_path, 1) as (server, (here,)):
        assert await here.export(here.queue()) is None
        await server.client.script_flush()
        assert await here.export(here.queue()) is None
        assert here.is_shared


async def test_callers_that_leave_never_leave_a_reply_for_the_next(tmp_path: Path) -> None:
    """A thousand of them, each cancelled at another moment of a command under way."""
    async with redis_server(tmp_path) as server, connected(server) as (_, tokens, _):
        for number in range(10):
            token_hash = bytes([number]) * 32
            await tokens.add(IssuedToken(token_hash, f"account-{number}", 600, None))
        before = (await server.client.info("stats"))["total_connections_received"]
        for turn in range(1000):
            finding = asyncio.get_running_loop().create_task(tokens.find(bytes([turn % 10]) * 32))
            for _ in range(turn % 7):
                await asyncio.sleep(0)  # noqa: TID251 -- yields
            finding.cancel()
            await asyncio.wait([finding])
            if turn % 10 == 0:
                number = turn // 10 % 10
                entry = await tokens.find(bytes([number]) * 32)
                assert entry is not None
                assert entry.account_id == f"account-{number}"
        after = (await server.client.info("stats"))["total_connections_received"]
        assert after - before <= 8  # nor does it cost a connection


@pytest.mark.timed
async def test_callers_that_leave_the_queue_leave_it_in_order(tmp_path: Path) -> None:
    async with noting_stalls() as stalls, deployed(tmp_path, 2) as (_, (here, there)):
        for turn in range(300):
            caller = here.caller(here.queue())
            for _ in range(turn % 9):
                await asyncio.sleep(0)  # noqa: TID251 -- yields
            caller.cancel()
            await asyncio.wait([caller])
        await pause(INTERVAL)
        begun = CLOCK.monotonic()
        assert await there.export(there.queue()) is None
        assert await here.export(here.queue()) is None
        assert CLOCK.monotonic() - begun <= 3 * INTERVAL + stalls.total


async def test_nothing_in_the_store_names_a_client_or_holds_a_token(tmp_path: Path) -> None:
    async with deployed(tmp_path, 1) as (server, (here,)):
        assert await here.export(here.queue()) is None
        stranger = here.accounts.unidentified(HASH)
        slot = await here.slot(stranger.queue("exports", paced=True))
        here.send(slot)
        slot.report(Refused(5.0))
        await pause(0.05)
        held = await server.everything()
        keys = [key for key in held if key not in NOBODYS]
        assert len(keys) == 2
        for key in keys:
            assert re.fullmatch(r"export-proxy:2:\{(token-)?[0-9a-f]{32}\}", key)
            assert 0 < await server.client.ttl(key) <= 700
        text = repr(held)
        for secret in ("id-of-london", "london", HASH.hex()[:32]):
            assert secret not in text


async def test_password_is_told_to_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "s3cret-of-the-store"
    async with redis_server(tmp_path, password=secret) as server:
        settings = settings_of(server.url, interval=INTERVAL)
        async with replicas_of(settings, 1) as (here,):
            await server.kill()
            await here.export(here.queue())
            told = [
                repr(here.connection),
                repr(here.store.settings),
                repr(here.store.client),
                repr(here.store.client.redis),
                repr(here.accounts.context.leases),
                generate_latest(here.registry).decode(),
            ]
    captured = capfd.readouterr()
    assert "the store is down" in captured.out
    assert re.search(r"error=.?the (connection was lost|server refuses connections)", captured.out)
    assert not re.search(r"[A-Za-z]+Error\b", captured.out)
    assert secret not in "".join([*told, captured.out, captured.err])


async def test_store_that_is_150_ms_away_is_up(tmp_path: Path) -> None:
    """Its timeout is for one answer; connecting takes several and has a time of its own."""
    async with redis_server(tmp_path) as server, FaultProxy(server.port) as network:
        network.mode = Delay(0.075)
        url = server.url.replace(str(server.port), str(network.port))
        store = {"timeout": 0.25}
        async with replicas_of(settings_of(url, interval=INTERVAL, store=store), 1) as (here,):
            await all_shared([here])
            assert await here.export(here.queue()) is None
            assert here.is_shared


async def test_wrong_password_is_a_store_that_is_down(tmp_path: Path) -> None:
    async with redis_server(tmp_path, password="right") as server:
        url = server.url.replace("right", "wrong")
        async with replicas_of(settings_of(url, interval=INTERVAL, replicas=2), 1) as (here,):
            assert not here.is_shared
            assert await here.export(here.queue()) is None


def test_idle_connection_that_is_reset_is_an_outage_and_no_more(tmp_path: Path) -> None:
    """With uvloop redis-py notices only when it writes, and what it raises is no OSError."""

    async def scenario() -> None:
        async with (
            redis_server(tmp_path) as server,
            FaultProxy(server.port) as network,
            connected(server, port=network.port) as (connection, tokens, listening),
        ):
            listening.cancel()  # who listens would notice at once
            await asyncio.wait([listening])
            network.reset_all()
            await pause(0.05)
            several = (tokens.find(bytes([n]) * 32) for n in range(4))  # one connects anew
            answers = await asyncio.gather(*several, return_exceptions=True)
            assert any(isinstance(answer, StoreDown) for answer in answers)
            assert not connection.is_up

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError])
async def test_whatever_the_client_library_raises_is_an_outage(
    error: type[Exception], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def address() -> Address:
        raise error("s3cret")

    async with redis_server(tmp_path) as server, connected(server) as (connection, *_):
        connection.client.address = address  # type: ignore[method-assign]  # as if it raised
        connection.fail(StoreDown("lost"))
        await pause(2 * PROBE)
        assert not connection.is_up
    said = capfd.readouterr().out
    assert f"kind={error.__name__}" in said
    assert "test_connection.py:" in said
    assert "s3cret" not in said


@pytest.mark.parametrize("wrong", ["SET", "NONSENSE"])
async def test_command_that_the_server_refuses_is_an_outage(wrong: str, tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server, connected(server) as (connection, *_):
        with pytest.raises(StoreDown, match="ERR"):
            await connection.run(wrong)
        assert not connection.is_up


async def test_hold_from_the_store_is_clamped_as_one_of_our_own(tmp_path: Path) -> None:
    async with deployed(tmp_path, 1, retry={"max_retry_after": 7}) as (server, (here,)):
        queue, forged = here.queue().leased, 10**12
        message = f"hold another {queue.key}  {forged} {forged}"
        await server.client.publish("export-proxy:2:all", message)

        async def is_held() -> bool:
            return queue.hold_left(of_route=False).seconds > 0

        await until(is_held)
        assert queue.hold_left(of_route=False).seconds <= 7
