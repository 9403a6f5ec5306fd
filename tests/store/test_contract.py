"""What every store promises, seen from outside: gaps, order, holds, nothing lost.

The same tests for one process on its own, and for three replicas on one Redis.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.pacing.slot import Answered, Refused, Unused
from proxy.problems import Problem
from tests.kit.process import until
from tests.kit.redis import redis_server
from tests.kit.replicas import (
    CLOCK,
    Replica,
    early,
    gaps,
    pause,
    replicas_of,
    settings_of,
)
from tests.kit.stalls import noting_stalls

INTERVAL = 0.2
SLACK = 0.15  # over a whole test: less than a lost slot

Deploy = Callable[..., AbstractAsyncContextManager[list[Replica]]]


@pytest.fixture(params=["memory", "redis"])
def deploy(request: pytest.FixtureRequest, tmp_path: Path) -> Deploy:
    """A function that runs the replicas, on either store."""

    @asynccontextmanager
    async def memory(interval: float = INTERVAL, **sections: Any) -> AsyncIterator[list[Replica]]:
        settings = settings_of("memory://", interval=interval, **sections)
        async with replicas_of(settings, 1) as replicas:
            yield replicas

    @asynccontextmanager
    async def redis(interval: float = INTERVAL, **sections: Any) -> AsyncIterator[list[Replica]]:
        async with redis_server(tmp_path) as server:
            settings = settings_of(server.url, interval=interval, replicas=3, **sections)
            async with replicas_of(settings, 3) as replicas:
                yield replicas

    return memory if request.param == "memory" else redis


def spread(replicas: list[Replica], count: int) -> list[asyncio.Task[Problem | None]]:
    """Let so many callers come to London, one replica after the other."""
    in_turn = [replicas[number % len(replicas)] for number in range(count)]
    return [replica.caller(replica.queue(), str(number)) for number, replica in enumerate(in_turn)]


def times(replicas: list[Replica]) -> list[float]:
    return [send.at for send in replicas[0].sends]


@pytest.mark.timed
async def test_burst_is_sent_one_an_interval_and_whole(deploy: Deploy) -> None:
    async with noting_stalls() as stalls, deploy() as replicas:
        assert await asyncio.gather(*spread(replicas, 12)) == [None] * 12
        assert early(times(replicas), INTERVAL) == 0
        assert sum(gaps(times(replicas))) <= 11 * INTERVAL + SLACK + stalls.total
        assert Counter(send.caller for send in replicas[0].sends) == Counter(map(str, range(12)))


async def test_each_replica_serves_its_callers_in_order_of_arrival(deploy: Deploy) -> None:
    async with deploy() as replicas:
        await asyncio.gather(*spread(replicas, 9))
        for number in range(len(replicas)):
            served = [int(send.caller) for send in replicas[0].sends if send.replica == number]
            assert served == list(range(number, 9, len(replicas)))


@pytest.mark.timed
async def test_costly_send_keeps_the_next_one_back_wherever_it_waits(deploy: Deploy) -> None:
    async with noting_stalls() as stalls, deploy() as replicas:
        here, there = replicas[0], replicas[-1]
        assert await here.export(here.queue(), cost=4.0) is None
        assert await there.export(there.queue()) is None
        gap = gaps(times(replicas))[0]
        assert 4 * INTERVAL <= gap <= 4 * INTERVAL + SLACK + stalls.total


@pytest.mark.timed
async def test_caller_that_leaves_costs_nothing(deploy: Deploy) -> None:
    """Every second caller hangs up, those at the head of a queue among them."""
    async with noting_stalls() as stalls, deploy() as replicas:
        callers = spread(replicas, 20)
        await pause(2.5 * INTERVAL)
        leaving = callers[6::2]
        for caller in leaving:
            caller.cancel()
        await asyncio.wait(callers)
        assert sum(not caller.cancelled() for caller in callers) == 13
        assert len(times(replicas)) == 13
        assert early(times(replicas), INTERVAL) == 0
        assert sum(gaps(times(replicas))) <= 12 * INTERVAL + SLACK + stalls.total


@pytest.mark.timed
async def test_slot_given_back_unused_is_lost_to_nobody(deploy: Deploy) -> None:
    async with noting_stalls() as stalls, deploy() as replicas:
        here, there = replicas[0], replicas[-1]
        unused = await here.slot(here.queue())
        waiting = there.caller(there.queue())
        await pause(INTERVAL / 2)
        assert not waiting.done()
        begun = CLOCK.monotonic()
        unused.report(Unused())
        assert await waiting is None
        assert CLOCK.monotonic() - begun < INTERVAL / 2 + stalls.total


@pytest.mark.timed
async def test_hold_is_obeyed_by_all_until_it_ends(deploy: Deploy) -> None:
    async with noting_stalls() as stalls, deploy() as replicas:
        refused = replicas[0]
        slot = await refused.slot(refused.queue())
        callers = spread(replicas, 9)
        refused.send(slot)
        await pause(3.5 * INTERVAL)
        sent = len(times(replicas))
        begun = CLOCK.monotonic()
        slot.report(Refused(1.5))
        await until(lambda: _all_hold(replicas))
        known = CLOCK.monotonic()
        assert known - begun <= SLACK + stalls.total
        sent_meanwhile = len(times(replicas)) - sent
        assert sent_meanwhile <= (1 if stalls.longest > INTERVAL / 4 else 0)
        await asyncio.gather(*callers)
        after = times(replicas)[sent + sent_meanwhile :]
        assert len(after) == 10 - sent - sent_meanwhile
        assert begun + 1.5 <= min(after) <= begun + 1.5 + INTERVAL + SLACK + stalls.total
        assert early(after, INTERVAL) == 0


async def _all_hold(replicas: list[Replica]) -> bool:
    return all(replica.queue().leased.hold_left(of_route=False) for replica in replicas)


@pytest.mark.timed
async def test_lines_of_other_accounts_and_routes_go_on(deploy: Deploy) -> None:
    async with noting_stalls() as stalls, deploy(0.8) as replicas:
        callers = spread(replicas, 3)
        await pause(0.1)
        other = replicas[-1]
        begun = CLOCK.monotonic()
        assert await other.export(other.queue("paris")) is None
        assert await other.export(other.queue(route="jobs")) is None
        assert CLOCK.monotonic() - begun < SLACK + stalls.total
        await asyncio.gather(*callers)


@pytest.mark.timed
async def test_room_in_flight_is_each_replica_s_own_and_no_lease_is_kept(deploy: Deploy) -> None:
    """A replica whose room is full lets the others send."""
    async with (
        noting_stalls() as stalls,
        deploy(pacing={"interval": INTERVAL, "max_in_flight": 1}) as replicas,
    ):
        here = replicas[0]
        stuck = await here.slot(here.queue())
        here.send(stuck)
        waits = here.caller(here.queue(), "behind")
        others = [r.caller(r.queue(), "other") for r in replicas[1:] for _ in range(3)]
        if others:
            begun = CLOCK.monotonic()
            await asyncio.gather(*others)
            took = CLOCK.monotonic() - begun
            assert took <= (len(others) + 1) * INTERVAL + SLACK + stalls.total
        assert not waits.done()
        stuck.report(Answered())
        assert await waits is None
        assert early(times(replicas), INTERVAL) == 0


async def test_caller_that_will_not_wait_gets_a_free_slot_and_no_other(deploy: Deploy) -> None:
    interval = 1.5  # longer than the machine may stand still
    async with deploy(interval) as replicas:
        here, there = replicas[0], replicas[-1]
        assert await here.export(here.queue(), limit=0) is None
        refused = await there.export(there.queue(), limit=0)
        assert refused is not None
        assert refused.name in {"queue-full", "wait-expired"}
        await pause(interval + SLACK)
        assert await there.export(there.queue(), limit=0) is None


async def test_accounts_that_are_idle_are_forgotten(deploy: Deploy) -> None:
    """A full table makes room: a queue without waiters keeps nobody."""
    async with deploy(identity={"max_unidentified": 5}) as replicas:
        here = replicas[0]
        for batch in range(3):
            queues = [
                here.accounts.unidentified(b"%d-%d" % (batch, n)).queue("exports", paced=True)
                for n in range(5)
            ]
            assert await asyncio.gather(*map(here.export, queues)) == [None] * 5
            await pause(2 * INTERVAL)


async def test_longer_interval_governs_present_waiters(deploy: Deploy) -> None:
    async with deploy() as replicas:
        callers = spread(replicas, 5)
        await pause(INTERVAL / 2)
        for replica in replicas:
            replica.accounts.context.pacing = replica.accounts.context.pacing.model_copy(
                update={"interval": 2 * INTERVAL}
            )
        sent = len(times(replicas))
        await asyncio.gather(*callers)
        assert early(times(replicas)[sent:], 2 * INTERVAL) == 0


@pytest.mark.timed
async def test_route_that_is_no_longer_paced_takes_no_leases(deploy: Deploy) -> None:
    async with noting_stalls() as stalls, deploy(0.3) as replicas:
        callers = spread(replicas, 9)
        await pause(0.1)
        for replica in replicas:
            for queue in replica.accounts.configured("london").queues:
                queue.leased.apply(paced=False)
            replica.accounts.configured("london").scheduler.pump()
        begun = CLOCK.monotonic()
        await asyncio.gather(*callers)
        assert CLOCK.monotonic() - begun < 0.2 + stalls.total
        for replica in replicas:
            replica.queue().leased.apply(paced=True)
        await asyncio.gather(*spread(replicas, 3))
        assert early(times(replicas)[-3:], 0.3) == 0


@pytest.mark.timed
async def test_replica_that_ends_leaves_its_lease_to_the_others(deploy: Deploy) -> None:
    async with noting_stalls() as stalls, deploy() as replicas:
        ending = replicas[0]
        callers = spread(replicas, 9)
        await pause(INTERVAL / 2)
        ending.accounts.drain()
        answers = await asyncio.gather(*callers)
        assert {answer.name for answer in answers if answer is not None} == {"draining"}
        sent = [send for send in ending.sends if send.replica != ending.number]
        assert len(sent) == 3 * (len(replicas) - 1)
        assert sum(gaps(times(replicas))) <= 8 * INTERVAL + SLACK + stalls.total
