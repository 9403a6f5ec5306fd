"""Replicas and a Redis in trouble: a rate while it is away, one early send at most, no hang."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy.pacing.slot import Answered, Refused, Unused
from proxy.problems import Problem
from proxy.rules.phase import WINDOW
from proxy.store import wire
from proxy.store.wire import Reply, StoreDown, Word
from tests.kit.fault_proxy import BlackHole, Delay, FaultProxy, Pass
from tests.kit.process import until
from tests.kit.redis import RedisServer, redis_server
from tests.kit.replicas import (
    CLOCK,
    ROUNDING,
    STORE_TIMEOUT,
    Replica,
    all_shared,
    early,
    pause,
    replicas_of,
    settings_of,
)
from tests.kit.stalls import noting_stalls

pytestmark = pytest.mark.timed

INTERVAL = 0.12
LONG = 1.5  # an interval that the machine does not sleep through
REPLICAS = 3
TIMEOUT = 1.0  # where the store stands still, and not the machine
SLACK = 0.1  # where a promise is about a wait
KEY_OF_LONDON = "export-proxy:2:{*}"

Fault = Callable[[RedisServer], Awaitable[None]]


@asynccontextmanager
async def deployed(
    folder: Path,
    interval: float = INTERVAL,
    *,
    timeout: float = STORE_TIMEOUT,  # noqa: ASYNC109 -- the store's
    **store: Any,
) -> AsyncIterator[tuple[RedisServer, list[Replica]]]:
    async with redis_server(folder, password="not-to-be-seen") as server:
        store["timeout"] = timeout
        settings = settings_of(server.url, interval=interval, replicas=REPLICAS, store=store)
        async with replicas_of(settings, REPLICAS) as replicas:
            yield server, replicas


def crowd(replicas: list[Replica], each: int) -> list[asyncio.Task[Problem | None]]:
    return [
        replica.caller(replica.queue(), f"{replica.number}-{number}")
        for number in range(each)
        for replica in replicas
    ]


def leave(callers: list[asyncio.Task[Problem | None]]) -> None:
    for caller in callers:
        caller.cancel()


def times(replicas: list[Replica], since: float = 0, to: float = 1e12) -> list[float]:
    return [send.at for send in replicas[0].sends if since <= send.at <= to]


async def are_sent(replicas: list[Replica], count: int, *, since: float) -> None:
    """Wait until so many were sent, by all of them together."""

    async def question() -> bool:
        return len(times(replicas, since)) >= count

    await until(question)


async def each_has_sent(replicas: list[Replica], count: int, *, since: float) -> None:
    """Wait until each of them has sent so many."""

    async def question() -> bool:
        late = [send.replica for send in replicas[0].sends if send.at >= since]
        return all(late.count(replica.number) >= count for replica in replicas)

    await until(question)


async def are_queued(server: RedisServer, replica: Replica) -> None:
    """Wait until somebody is queued for London's lease."""
    await server.has_told(replica.queue().leased.key, f"queue:{replica.queue().leased.lease_name}")


def nothing_was_sent_twice(replicas: list[Replica]) -> bool:
    callers = [send.caller for send in replicas[0].sends]
    return len(set(callers)) == len(callers)


async def are_alone(replicas: list[Replica]) -> None:
    async def question() -> bool:
        return not any(replica.is_shared for replica in replicas)

    await until(question)


async def killed(server: RedisServer) -> None:
    await server.kill()


async def frozen(server: RedisServer) -> None:
    server.freeze()


async def restarted(server: RedisServer) -> None:
    await server.start()


async def thawed(server: RedisServer) -> None:
    server.thaw()


def note_return(replica: Replica, joined: dict[int, float]) -> None:
    joined[replica.number] = CLOCK.monotonic()


@pytest.mark.parametrize(("begins", "ends"), [(killed, restarted), (frozen, thawed)])
async def test_while_the_store_is_away_each_replica_keeps_its_share_of_the_pace(
    begins: Fault, ends: Fault, tmp_path: Path
) -> None:
    """The account has several queues: a look at one of them looks at all."""
    async with (
        noting_stalls() as stalls,
        deployed(tmp_path, timeout=TIMEOUT) as (server, replicas),
    ):
        for replica in replicas:
            replica.queue(route="api", paced=False)
        callers = crowd(replicas, 40)
        await pause(5 * INTERVAL)
        began = CLOCK.monotonic()
        await begins(server)
        await are_alone(replicas)
        alone = CLOCK.monotonic()
        assert alone - began <= 0.5 + TIMEOUT + SLACK + stalls.total  # quiet, no sign of life
        await each_has_sent(replicas, 3, since=alone)
        assert [replica.counted("store_up") for replica in replicas] == [0.0] * REPLICAS
        joined: dict[int, float] = {}
        for replica in replicas:
            replica.store.came_back.append(partial(note_return, replica, joined))
        await ends(server)
        ended = CLOCK.monotonic()
        await all_shared(replicas)
        returned = CLOCK.monotonic()
        assert returned - ended <= 2 + stalls.total
        await are_sent(replicas, 4, since=returned)
        leave(callers)
        sends = replicas[0].sends
        for replica in replicas:
            back = joined[replica.number]
            own = [send.at for send in sends if send.replica == replica.number]
            degraded = [at for at in own if alone <= at <= back]
            before = [at for at in own if at < alone][-1:]
            assert early(before + degraded, INTERVAL * REPLICAS) == 0
            # No burst on return: nobody sends for an interval, and then one at a time.
            assert not [at for at in own if back < at < back + INTERVAL - ROUNDING]
            assert replica.counted("store_degraded_decisions_total") >= 3
            assert replica.counted("store_up") == 1.0
        assert early(times(replicas, max(joined.values())), INTERVAL) == 0
        # And never faster than the shared pace on the way.
        assert len(times(replicas, began, returned)) <= (returned - began) / INTERVAL + REPLICAS
        assert nothing_was_sent_twice(replicas)


async def flushed(server: RedisServer) -> None:
    await server.flush()


async def without_scripts(server: RedisServer) -> None:
    await server.client.script_flush()


async def of_another_type(server: RedisServer) -> None:
    async for key in server.client.scan_iter(match=KEY_OF_LONDON):
        await server.client.set(key, "somebody else's")


async def an_hour_ahead(server: RedisServer) -> None:
    await server.jump_clock(3600)


async def an_hour_back(server: RedisServer) -> None:
    await server.jump_clock(-3600)


@pytest.mark.parametrize(
    "fault", [flushed, without_scripts, of_another_type, an_hour_ahead, an_hour_back]
)
async def test_what_befalls_the_state_costs_one_early_send_at_most(
    fault: Fault, tmp_path: Path
) -> None:
    """Whatever moment it hits; and the queue goes on at its pace."""
    async with deployed(tmp_path) as (server, replicas):
        callers = crowd(replicas, 40)
        await pause(4.1 * INTERVAL)
        for part in (0.2, 0.5):
            await pause(part * INTERVAL)
            began = CLOCK.monotonic()
            await fault(server)
            await pause(5 * INTERVAL)
            await are_sent(replicas, 3, since=began)
            assert early(times(replicas, began - INTERVAL), INTERVAL) <= 1
        leave(callers)
        assert all(replica.is_shared for replica in replicas)
        assert nothing_was_sent_twice(replicas)


@pytest.mark.parametrize("fault", [flushed, of_another_type, an_hour_ahead])
async def test_newcomer_that_finds_the_state_gone_is_the_only_early_one(
    fault: Fault, tmp_path: Path
) -> None:
    """The replica with the lease is told before it uses it; what happened is counted."""
    async with noting_stalls() as stalls, deployed(tmp_path, interval=0.3) as (server, replicas):
        busy, idle = replicas[0], replicas[1]
        callers = crowd([busy], 8)
        await pause(0.45)
        await fault(server)
        assert await idle.export(idle.queue(), "newcomer") is None
        await are_sent(replicas, 5, since=0)
        leave(callers)
        assert early(times(replicas), 0.3) <= 1
        if fault is not an_hour_ahead and stalls.longest < 0.1:  # else busy may find out itself
            assert busy.counted("store_degraded_decisions_total") == 1.0


async def test_caller_that_hangs_up_after_a_flush_makes_nobody_early(tmp_path: Path) -> None:
    async with deployed(tmp_path, interval=LONG) as (server, (here, there, third)):
        key = here.queue().leased.key
        assert await here.export(here.queue()) is None
        await server.has_told(key, f"due:{here.queue().leased.lease_name}")
        has_lease = here.caller(here.queue())
        await server.has_told(key, f"holder:{here.queue().leased.lease_name}")
        queued = there.caller(there.queue())
        await are_queued(server, there)
        await pause(0.05)
        await server.flush()
        queued.cancel()
        await server.has_told(key, f"due:{here.queue().leased.lease_name}")
        assert await third.export(third.queue()) is None
        assert await has_lease is None
        assert early(times([here]), LONG) == 0
        assert here.counted("store_degraded_decisions_total") == 1.0


async def test_replica_that_finds_the_state_gone_says_itself_what_it_knew(tmp_path: Path) -> None:
    async with deployed(tmp_path, interval=LONG) as (server, (here, there, _)):
        key = here.queue().leased.key
        assert await here.export(here.queue()) is None
        await server.has_told(key, f"due:{here.queue().leased.lease_name}")
        await server.flush()
        leaving = here.caller(here.queue())
        await server.has_told(key, f"due:{here.queue().leased.lease_name}")
        leaving.cancel()
        await pause(0.05)
        assert await there.export(there.queue()) is None
        assert early(times([here]), LONG) == 0


async def test_flush_is_noticed_on_one_queue_and_made_good_on_all(tmp_path: Path) -> None:
    async with deployed(tmp_path, interval=LONG) as (server, (here, there, _)):
        key = here.queue().leased.key
        for route in ("exports", "jobs"):
            assert await here.export(here.queue(route=route), route) is None
            await server.has_told(key, f"due:{here.queue(route=route).leased.lease_name}")
        await server.flush()
        assert await there.export(there.queue(), "early") is None
        await server.has_told(key, "due:jobs")
        assert await there.export(there.queue(route="jobs"), "jobs") is None
        assert early([send.at for send in here.sends if send.caller == "jobs"], LONG) == 0
        assert here.counted("store_degraded_decisions_total") == 1.0


@pytest.mark.parametrize("paced", [True, False])
async def test_hold_that_was_flushed_is_told_again(tmp_path: Path, *, paced: bool) -> None:
    """By a replica where nobody waits and no pace is left, to those that had no queue yet."""
    async with deployed(tmp_path) as (server, (here, there, third)):
        slot = await here.slot(here.queue())
        here.send(slot)
        begun = CLOCK.monotonic()
        slot.report(Refused(2.5))
        await pause(2 * INTERVAL)
        await server.flush()
        assert await there.export(there.queue(route="some", paced=paced), "early") is None
        await server.has_told(here.queue().leased.key, "hold")
        assert await third.export(third.queue(route="some", paced=paced)) is None
        assert CLOCK.monotonic() >= begun + 2.5 - 0.01
        assert here.counted("store_degraded_decisions_total") == 1.0


async def test_waiter_that_was_told_when_the_queue_opens_goes_no_earlier_without_the_store(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path, interval=LONG) as (server, (here, *others)):
        await pause(LONG * REPLICAS)  # the distance after the start is past without the store, too
        assert await here.export(here.queue()) is None
        await server.has_told(here.queue().leased.key, f"due:{here.queue().leased.lease_name}")
        callers = crowd(others, 1)
        await until(lambda: are_told(others))
        await server.kill()
        await are_alone([here, *others])
        assert await asyncio.gather(*callers) == [None] * 2
        first, *rest = times([here])
        for number, at in enumerate(rest, start=1):  # each by what it was told, however late others
            assert at >= first + number * LONG - ROUNDING


async def are_told(replicas: list[Replica]) -> bool:
    return all(replica.predicted_wait() > LONG for replica in replicas)


async def test_message_that_comes_after_the_outage_has_begun_stops_no_queue(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, replicas):
        here = replicas[0]
        await server.kill()
        await are_alone(replicas)
        assert await here.export(here.queue()) is None
        here.leases.inbox.receive(f"lost another {here.queue().leased.key} 1", CLOCK.monotonic())
        async with asyncio.timeout(INTERVAL * REPLICAS + 1.5):
            assert await here.export(here.queue()) is None


async def test_lease_that_is_not_wanted_any_more_is_given_up_before_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    """One command at a time for a queue: of two, either might be carried out first."""
    async with deployed(tmp_path) as (_, (here, *_)):
        queue = here.queue()
        send, under_way, most = here.store.send, 0, 0

        def counting(words: tuple[Word, ...], answered: wire.Answered) -> None:
            nonlocal under_way, most

            def counted(reply: Reply | StoreDown) -> None:
                nonlocal under_way
                under_way -= 1
                answered(reply)

            under_way += 1
            most = max(most, under_way)
            send(words, counted)

        here.store.send = counting  # type: ignore[method-assign]  # the wire, watched
        here.leases.inbox.receive(
            f"lease {queue.leased.key} {queue.leased.lease_name} 1 1 0", CLOCK.monotonic()
        )
        assert await here.export(queue) is None
        assert most == 1


async def test_listener_does_not_hang_on_a_network_that_swallows_everything(
    tmp_path: Path,
) -> None:
    """Its connection is dropped, and the one it makes instead leads nowhere."""
    async with (
        noting_stalls() as stalls,
        redis_server(tmp_path) as server,
        FaultProxy(server.port) as network,
    ):
        url = f"redis://127.0.0.1:{network.port}/0"
        store = {"timeout": TIMEOUT}
        settings = settings_of(url, interval=INTERVAL, replicas=2, store=store)
        async with replicas_of(settings, 1) as replicas:
            network.mode = BlackHole()
            network.reset_all()
            begun = CLOCK.monotonic()
            await are_alone(replicas)
            assert CLOCK.monotonic() - begun <= 0.5 + TIMEOUT + SLACK + stalls.total
            await pause(1.2)
            network.mode = Pass()
            await all_shared(replicas)
            assert await replicas[0].export(replicas[0].queue()) is None


@pytest.mark.parametrize("fault", [killed, frozen])
async def test_caller_waits_for_a_store_that_does_not_answer_once_and_briefly(
    fault: Fault, tmp_path: Path
) -> None:
    async with (
        noting_stalls() as stalls,
        deployed(tmp_path, timeout=TIMEOUT) as (server, replicas),
    ):
        here = replicas[0]
        await fault(server)
        begun = CLOCK.monotonic()
        assert await here.export(here.queue()) is None
        in_phase = INTERVAL * REPLICAS  # it waits for its moment
        assert CLOCK.monotonic() - begun <= TIMEOUT + in_phase + SLACK + stalls.total
        begun = CLOCK.monotonic()
        assert await here.export(here.queue("paris")) is None
        assert CLOCK.monotonic() - begun <= in_phase + 0.05 + stalls.total


async def test_store_that_stands_still_is_noticed_without_any_traffic(tmp_path: Path) -> None:
    async with (
        noting_stalls() as stalls,
        deployed(tmp_path, timeout=TIMEOUT) as (server, replicas),
    ):
        begun = CLOCK.monotonic()
        server.freeze()
        await are_alone(replicas)
        assert CLOCK.monotonic() - begun <= 0.5 + TIMEOUT + SLACK + stalls.total
        server.thaw()
        await all_shared(replicas)


async def test_message_that_comes_late_gives_no_lease(tmp_path: Path) -> None:
    """Words and answers come by two connections; only their stamps tell which is the newer."""
    async with deployed(tmp_path) as (server, replicas):
        here, there = replicas[0], replicas[1]
        ear = server.client.pubsub()
        await ear.psubscribe("export-proxy:*")
        slot = await there.slot(there.queue())
        waiting = here.caller(here.queue())
        await are_queued(server, here)
        there.send(slot)
        slot.report(Answered())
        assert await waiting is None
        words: list[tuple[bytes, bytes]] = []

        async def is_told() -> bool:
            while message := await ear.get_message(timeout=0.1):
                if message["type"] == "pmessage" and message["data"].startswith(b"lease "):
                    words.append((message["channel"], message["data"]))
            return bool(words)

        await until(is_told)
        await ear.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        assert len(words) == 1
        slot = await there.slot(there.queue())
        waiting = here.caller(here.queue())
        await are_queued(server, here)
        await pause(0.02)
        await server.client.publish(*words[0])
        await pause(3 * INTERVAL)
        assert not waiting.done()
        slot.report(Unused())
        assert await waiting is None


async def test_store_that_is_slow_is_down_and_one_that_is_not_quite_so_slow_is_not(
    tmp_path: Path,
) -> None:
    async with redis_server(tmp_path) as server, FaultProxy(server.port) as network:
        url = f"redis://127.0.0.1:{network.port}/0"
        store = {"timeout": TIMEOUT}
        settings = settings_of(url, interval=0.3, replicas=REPLICAS, store=store)
        async with replicas_of(settings, 2) as replicas:
            network.mode = Delay(0.1)
            callers = crowd(replicas, 5)
            await pause(1.0)
            assert all(replica.is_shared for replica in replicas)
            network.mode = Delay(0.7)
            await are_alone(replicas)
            network.mode = Pass()
            await all_shared(replicas)
            assert await asyncio.gather(*callers) == [None] * 10
            assert nothing_was_sent_twice(replicas)


async def test_without_the_store_everybody_is_refused_if_so_configured(tmp_path: Path) -> None:
    """Present waiters too; what is not paced goes on."""
    async with deployed(tmp_path, interval=0.4, on_failure="reject") as (
        server,
        replicas,
    ):
        callers = crowd(replicas, 3)
        await pause(0.6)
        await server.kill()
        await are_alone(replicas)
        sent = len(times(replicas))
        answers = await asyncio.gather(*callers)
        refused = [answer for answer in answers if answer is not None]
        assert len(refused) == len(callers) - sent
        here = replicas[0]
        newcomer = await here.export(here.queue())
        assert newcomer is not None
        assert {problem.name for problem in [*refused, newcomer]} == {"store-unavailable"}
        assert newcomer.retry_after == 1
        assert await here.export(here.queue(route="api", paced=False)) is None
        assert len(times(replicas)) == sent + 1
        await server.start()
        await all_shared(replicas)
        assert await here.export(here.queue()) is None


async def test_hold_that_began_without_the_store_is_told_when_it_is_back(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, replicas):
        here, there = replicas[0], replicas[1]
        await server.kill()
        await are_alone(replicas)
        slot = await here.slot(here.queue())
        here.send(slot)
        begun = CLOCK.monotonic()
        slot.report(Refused(3.0))
        await server.start()
        await all_shared(replicas)
        await server.has_told(here.queue().leased.key, "hold")
        assert await there.export(there.queue()) is None
        assert CLOCK.monotonic() >= begun + 3.0 - 0.01


async def test_hold_is_obeyed_by_a_replica_that_never_dealt_with_the_account(
    tmp_path: Path,
) -> None:
    """On a route that is not paced, too: it asks before its first send there."""
    async with deployed(tmp_path) as (server, replicas):
        here, there = replicas[0], replicas[1]
        slot = await here.slot(here.queue(route="api", paced=False))
        here.send(slot)
        begun = CLOCK.monotonic()
        slot.report(Refused(0.5))
        await server.has_told(here.queue().leased.key, "hold")
        assert await there.export(there.queue(route="api", paced=False)) is None
        assert CLOCK.monotonic() >= begun + 0.5 - 0.01


async def test_answer_that_never_came_costs_one_slot_at_most(tmp_path: Path) -> None:
    """The command is carried out when Redis goes on; nobody wants that lease any more."""
    async with (
        noting_stalls() as stalls,
        deployed(tmp_path, interval=0.3, timeout=TIMEOUT) as (server, replicas),
    ):
        here, there = replicas[0], replicas[1]
        server.freeze()
        assert await here.export(here.queue()) is None
        await are_alone(replicas)
        # So that it goes on shortly before they look, and that lease would last for long after.
        await pause(0.8 - CLOCK.wall() % 1.0 + (CLOCK.wall() % 1.0 > 0.8))
        server.thaw()
        await all_shared(replicas)
        begun = CLOCK.monotonic()
        for _ in range(3):
            assert await there.export(there.queue()) is None
        took = CLOCK.monotonic() - begun
        assert (
            took <= 0.3 * (3 + 1) + SLACK + stalls.total
        )  # the distance after the return included


async def test_caller_that_could_not_be_identified_keeps_to_a_share_of_the_pace(
    tmp_path: Path,
) -> None:
    """The account it may belong to has a queue of its own, which goes on at the full pace."""
    async with deployed(tmp_path) as (_, replicas):
        here = replicas[0]
        stranger = here.accounts.unidentified(b"of whom?")
        stranger.allowance.may_be_another = True
        queue = stranger.queue("exports", paced=True)
        assert await asyncio.gather(*(here.export(queue) for _ in range(3))) == [None] * 3
        assert early(times(replicas), INTERVAL * REPLICAS) == 0


async def test_new_settings_are_obeyed_while_the_store_is_away(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, replicas):
        here = replicas[0]
        await server.kill()
        await are_alone(replicas)
        assert here.accounts.context.leases.spread == REPLICAS
        here.store.apply(here.store.settings.model_copy(update={"replicas": 5}))
        assert here.accounts.context.leases.spread == 5


async def test_waiters_are_refused_when_that_is_configured_while_the_store_is_away(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path, interval=2.0) as (server, (here, *_)):
        assert await here.export(here.queue()) is None
        waiting = here.caller(here.queue())
        await server.kill()
        await are_alone([here])
        here.store.apply(here.store.settings.model_copy(update={"on_failure": "reject"}))
        async with asyncio.timeout(2):
            refused = await waiting
        assert refused is not None
        assert refused.name == "store-unavailable"


@pytest.mark.parametrize("count", [2, 3])
async def test_saturated_replicas_without_the_store_do_not_send_at_the_same_moment(
    count: int, tmp_path: Path
) -> None:
    """An API that allows 20 ms would refuse none of them."""
    interval = 0.2
    async with noting_stalls() as stalls, redis_server(tmp_path) as server:
        settings = settings_of(server.url, interval=interval, replicas=count)
        async with replicas_of(settings, count) as replicas:
            assert len({replica.leases.number for replica in replicas}) == count
            await server.kill()
            await are_alone(replicas)
            await pause(interval * count)  # what was sent with the store is past
            began = CLOCK.monotonic()
            assert await asyncio.gather(*crowd(replicas, 4)) == [None] * (4 * count)
            took = CLOCK.monotonic() - began
            assert early(times(replicas, began), interval - 0.02) == 0
            assert took <= 4 * count * interval + 0.3 + count * interval * stalls.total / WINDOW


async def test_hold_of_a_route_and_its_named_wait_are_known_to_all_until_a_probe_is_accepted(
    tmp_path: Path,
) -> None:
    """Other routes go on everywhere."""
    async with (
        redis_server(tmp_path) as server,
        replicas_of(
            settings_of(server.url, interval=INTERVAL, replicas=2, retry={"max_retry_after": 1.0}),
            2,
        ) as replicas,
    ):
        await all_shared(replicas)
        here, there = replicas
        assert await there.export(there.queue()) is None
        slot = await here.slot(here.queue())
        here.send(slot)
        slot.report(Refused(600.0))
        await until(lambda: _is_held(there))
        assert await there.export(there.queue(route="jobs")) is None
        told = await there.export(there.queue(), limit=60.0)
        assert told is not None
        assert told.name == "queue-full"
        assert told.retry_after is not None
        assert 598 <= told.retry_after <= 600
        await pause(1.2)
        assert await here.export(here.queue(), limit=60.0) is None
        await until(lambda: _is_open(there))
        assert await there.export(there.queue(), limit=60.0) is None


async def _is_held(replica: Replica) -> bool:
    return bool(replica.queue().leased.hold_left(of_route=True))


async def _is_open(replica: Replica) -> bool:
    return not await _is_held(replica)
