"""What an account tells the other replicas, and what it does that they told it."""

import pytest

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.leases import FREE, HoldLeft, Lease, SharedQueue
from proxy.pacing.slot import Answered, NotSent, Refused, Unused
from proxy.rules.limits import Limit
from proxy.rules.quota import Quota
from proxy.settings import Account, Route, Settings
from proxy.telemetry.history import Held
from tests.kit.pacing import UPSTREAM, Bench, Caller, OtherReplicas, bench

INTERVAL = 0.5
CLAMP = 300.0
DAY = 41_000.0
PLATFORM, FLOWS = Limit("token.rate", "platform.api"), Limit("flow.rate", "flows")


@pytest.fixture
def others() -> OtherReplicas:
    return OtherReplicas()


async def refuse(b: Bench, queue: AccountQueue, seconds: float | None, limit: Limit) -> None:
    b.send(await b.get(queue)).report(Refused(seconds, limit))


async def now_free(b: Bench, queue: AccountQueue) -> Caller:
    """Let a caller come that takes a free slot and waits for none."""
    assert b.admit(queue, 0.0) is None
    caller = b.join(queue, limit=0.0)
    await b.clock.advance(0)
    return caller


def reload(b: Bench, *routes: Route) -> None:
    b.accounts.apply(
        Settings(
            upstream=UPSTREAM,
            accounts=(Account(name="london", client_id="id-1"),),
            routes=routes,
        )
    )


# Holds


async def test_others_are_told_of_a_hold_and_of_what_the_api_named(others: OtherReplicas) -> None:
    """On one route or on all; after the clamp a probe looks whether it is over."""
    async with bench(leases=others) as b:
        queue, key = b.queue(), b.account().key
        await refuse(b, queue, 60.0, PLATFORM)
        assert others.holds == {(key, ""): HoldLeft(60.0, 60.0)}
        await b.until(70)
        await refuse(b, queue, DAY, FLOWS)
        assert others.holds[key, queue.leased.lease_name] == HoldLeft(CLAMP, DAY)
        assert others.holds[key, ""] == HoldLeft(60.0, 60.0)


async def test_others_are_told_of_the_hold_of_a_used_up_quota(others: OtherReplicas) -> None:
    async with bench(leases=others) as b:
        b.send(await b.get(b.queue())).report(Answered(Quota(0, 8.0)))
        assert others.holds == {(b.account().key, ""): HoldLeft(8.0, 8.0)}


@pytest.mark.parametrize("limit", [PLATFORM, FLOWS], ids=["account", "route"])
async def test_others_are_told_when_a_probe_ends_a_hold_before_the_named_wait_is_over(
    others: OtherReplicas, limit: Limit
) -> None:
    async with bench(leases=others) as b:
        await refuse(b, b.queue(), DAY, limit)
        probe = b.join(b.queue(), limit=DAY)
        await b.until(10 + CLAMP)
        b.send(probe.take())
        assert len(others.holds) == 1
        probe.take().report(Answered())
        assert others.holds == {}


async def test_others_are_not_told_of_the_end_of_a_hold_that_they_know(
    others: OtherReplicas,
) -> None:
    """It ends when the API said it would."""
    async with bench(leases=others) as b:
        await refuse(b, b.queue(), 8.0, PLATFORM)
        told = dict(others.holds)
        await b.all_served([b.join(b.queue())])
        assert b.hold_left() == 0
        assert others.holds == told


@pytest.mark.parametrize("report", [NotSent(), Unused()], ids=["not sent", "unused"])
async def test_a_probe_that_proved_nothing_ends_no_hold_of_the_others(
    others: OtherReplicas, report: NotSent | Unused
) -> None:
    async with bench(leases=others) as b:
        await refuse(b, b.queue(), DAY, PLATFORM)
        await b.until(10 + CLAMP)
        (await b.get(b.queue())).report(report)
        assert len(others.holds) == 1
        await b.all_served([b.join(b.queue())])


async def test_an_answer_to_what_was_sent_before_a_hold_does_not_end_it_for_the_others(
    others: OtherReplicas,
) -> None:
    async with bench(leases=others) as b:
        api = b.queue("api", paced=False)
        before = b.send(await b.get(api))
        await refuse(b, api, DAY, PLATFORM)
        before.report(Answered())
        assert len(others.holds) == 1


@pytest.mark.parametrize("of_route", [True, False], ids=["route", "account"])
async def test_a_hold_that_others_tell_of_is_obeyed_as_far_as_one_of_our_own(
    *, of_route: bool
) -> None:
    """After the clamp a probe goes; the caller is told of the whole wait, operators of the hold."""
    async with bench() as b:
        queue = b.queue()
        await b.until(20)
        queue.leased.obey_hold(HoldLeft(DAY, DAY), of_route=of_route)
        assert queue.leased.hold_left(of_route=of_route) == HoldLeft(CLAMP, DAY)
        assert b.counted("holds_total", account="london", reason="refused") == 1
        await b.until(21)
        queue.leased.obey_hold(HoldLeft(DAY, DAY), of_route=of_route)
        assert b.counted("holds_total", account="london", reason="refused") == 1  # it goes on
        held = Held("exports" if of_route else None, 1.0, 0.0)
        assert b.metrics.history.holds("london", b.now) == [held]
        problem = b.admit(queue, 60.0)
        assert problem is not None
        assert problem.retry_after == DAY
        await b.all_served([b.join(queue, limit=DAY)])


async def test_seconds_on_hold_are_counted_when_others_have_seen_its_end() -> None:
    async with bench() as b:
        queue = b.queue()
        queue.leased.obey_hold(HoldLeft(0.5, DAY), of_route=False)
        await b.until(10.25)
        queue.leased.obey_end_of_hold(of_route=False)
        assert b.hold_left() == 0.25  # the hold itself is not over
        assert b.counted("held_seconds_total", account="london") == 0
        await b.until(10.5)
        queue.leased.obey_end_of_hold(of_route=False)
        assert b.account().allowance.holding.hold is None
        assert b.counted("held_seconds_total", account="london") == 0.5
        queue.leased.obey_end_of_hold(of_route=False)
        assert b.counted("held_seconds_total", account="london") == 0.5


# Leases


async def test_leases_are_named_after_what_the_route_takes_now(others: OtherReplicas) -> None:
    async with bench(leases=others) as b:
        reload(b, Route(name="exports", paths=("/exports/**",), paced=True))
        queue = b.queue()
        old = queue.leased.lease_name
        assert others.paced == {old: True}
        reload(b, Route(name="exports", paths=("/exports/**", "/jobs/**"), paced=True))
        new = queue.leased.lease_name
        assert new != old
        assert others.paced == {new: True}
        reload(b, Route(name="exports", paths=("/exports/**", "/jobs/**"), paced=True))
        assert others.paced == {new: True}


async def test_a_route_that_takes_more_leaves_others_time_for_what_they_just_sent() -> None:
    """One of them may have sent for the new path just now: the queue waits an interval, no more."""
    async with bench() as b:
        reload(b, Route(name="exports", paths=("/exports/**",), paced=True))
        await b.until(20)
        b.send(await b.get(b.queue())).report(Answered())
        await b.until(20.1)
        reload(b, Route(name="exports", paths=("/exports/**", "/jobs/**"), paced=True))
        assert await b.all_served([b.join(b.queue())]) == [20.1 + INTERVAL]


async def test_a_reload_that_changes_no_path_delays_nobody() -> None:
    async with bench() as b:
        reload(b, Route(name="exports", paths=("/exports/**",), paced=True))
        await b.until(20)
        b.queue()
        reload(b, Route(name="exports", paths=("/exports/**",), paced=True))
        assert await b.all_served([b.join(b.queue())]) == [20.0]


async def test_the_store_knows_whether_a_route_is_paced_now(others: OtherReplicas) -> None:
    async with bench(leases=others) as b:
        reload(b, Route(name="exports", paths=("/exports/**",)))
        queue = b.queue(paced=False)
        assert others.paced == {"exports": False}
        reload(b, Route(name="exports", paths=("/exports/**",), paced=True))
        assert queue.paced
        assert others.paced == {queue.leased.lease_name: True}
        reload(b, Route(name="exports", paths=("/exports/**",)))
        assert not queue.paced
        assert others.paced == {"exports": False}


async def test_a_lease_is_ordered_while_somebody_waits_and_no_slot_is_out(
    others: OtherReplicas,
) -> None:
    async with bench(leases=others) as b:
        slot = await b.get(b.queue())
        assert others.wanted_by == set()
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        assert others.wanted_by == set()  # the lease is being used
        b.send(slot).report(Answered())
        assert others.wanted_by == {b.queue().leased.lease_name}
        assert await b.all_served([waiting]) == [10.5]  # they take turns: each at the whole pace
        assert others.wanted_by == set()


async def test_while_the_store_is_down_each_replica_takes_its_share_of_the_pace(
    others: OtherReplicas,
) -> None:
    others.spread = 2
    async with bench(leases=others) as b:
        callers = [b.join(b.queue()) for _ in range(3)]
        await b.clock.advance(0)
        assert b.predicted_wait(b.ticket()) == pytest.approx(3 * 2 * INTERVAL, abs=INTERVAL)
        sends = await b.all_served(callers)
        assert sends == [10.0, 11.0, 12.0]


async def test_replicas_that_cannot_ask_each_other_send_at_moments_of_their_own(
    others: OtherReplicas,
) -> None:
    """On paced routes, and while a lease is awaited there is none."""
    others.every = 4
    async with bench(leases=others) as b:
        await b.until(10.1)
        b.send(await b.get(b.queue())).report(Answered())
        assert b.predicted_wait(b.ticket()) == pytest.approx(1.9)
        paced = [b.join(b.queue()) for _ in range(2)]
        for caller in paced:
            caller.is_prompt = True
        free = [b.join(b.queue("api", paced=False)) for _ in range(2)]
        assert await b.all_served(free) == [10.1, 10.1]
        b.queue("jobs").leased.lease_lost()
        waiting = b.join(b.queue("jobs"))
        assert await b.all_served(paced) == [12.0, 14.0]
        assert waiting.slot is None
        waiting.cancel()


async def test_the_prediction_knows_how_many_replicas_have_waiters(others: OtherReplicas) -> None:
    async with bench(leases=others) as b:
        queue = b.queue()
        queue.leased.lease_lost()
        queue.leased.lease_expected(12.0, 3)
        waiting = b.join(queue)
        await b.clock.advance(0)
        assert b.predicted_wait(b.ticket()) == 2.0 + 3 * INTERVAL
        queue.leased.store_lost()
        assert b.predicted_wait(b.ticket()) == 2.0 + INTERVAL
        queue.leased.lease_granted(Lease(11.0, 30.0))
        queue.leased.lease_lost()
        assert b.predicted_wait(b.ticket()) == 1.0 + INTERVAL  # until more is known
        waiting.cancel()


async def test_no_lease_is_wanted_while_an_operator_pauses_the_account() -> None:
    async with bench() as b:
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        waiting.take().report(Unused())
        await b.accounts.operators.pause(b.account(), 60.0)
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        assert not b.queue().leased.wants_lease()
        await b.until(70)
        b.use(waiting)


async def test_a_send_keeps_others_back_by_the_interval_that_will_be_in_force() -> None:
    """An operator's longer one ends in two seconds; then the route's own is kept again."""
    jobs = Route(name="jobs", paths=("/jobs/**",), paced=True, interval=3.0)
    exports = Route(name="exports", paths=("/exports/**",), paced=True)
    async with bench() as b:
        reload(b, exports, jobs)
        await b.until(20)
        for route in ("exports", "jobs"):
            b.send(await b.get(b.queue(route))).report(Answered())
        await b.accounts.operators.slow_down(b.account(), 60.0, 2.0)
        assert b.queue("exports").leased.pace_left() == 2.0
        assert b.queue("jobs").leased.pace_left() == 3.0
        await b.until(21)
        assert b.queue("exports").leased.pace_left() == 1.0


async def test_paced_requests_are_refused_while_no_store_keeps_the_pace_of_all(
    others: OtherReplicas,
) -> None:
    others.is_refusing = True
    async with bench(leases=others) as b:
        problem = b.admit(b.queue(), 60.0)
        assert problem is not None
        assert problem.name == "store-unavailable"
        caller = b.join(b.queue())
        free = b.join(b.queue("api", paced=False))
        assert await b.all_served([free]) == [10.0]
        assert caller.problem is not None
        assert caller.problem.name == "store-unavailable"


async def test_an_account_that_is_only_observed_needs_no_store(others: OtherReplicas) -> None:
    others.is_refusing = True
    async with bench(leases=others, mode="observe") as b:
        assert b.admit(b.queue(), 60.0) is None
        assert await b.all_served([b.join(b.queue())]) == [10.0]


# A caller that takes a free slot only, while the store is asked for the lease


async def test_it_gets_the_slot_if_the_store_gives_the_lease(others: OtherReplicas) -> None:
    others.answer_timeout = 0.5
    async with bench(leases=others) as b:
        queue = b.queue()
        queue.leased.lease_lost()
        caller = await now_free(b, queue)
        await b.until(10.4)
        assert caller.is_waiting
        queue.leased.lease_granted(FREE)
        queue.leased.reevaluate()
        await b.clock.advance(0)
        assert caller.got_at == 10.4
        b.use(caller)


async def test_it_is_refused_as_soon_as_the_store_gives_it_to_another(
    others: OtherReplicas,
) -> None:
    others.answer_timeout = 0.5
    async with bench(leases=others) as b:
        queue = b.queue()
        queue.leased.lease_lost()
        caller = await now_free(b, queue)
        other = b.join(queue)
        await b.until(10.1)
        queue.leased.lease_expected(13.0, 2)
        queue.leased.reevaluate()
        await b.clock.advance(0)
        assert caller.problem is not None
        assert caller.problem.name == "wait-expired"
        assert other.is_waiting  # it can wait for the lease
        queue.leased.lease_granted(FREE)
        queue.leased.reevaluate()
        await b.all_served([other])


async def test_it_is_refused_if_the_store_says_nothing_in_time(others: OtherReplicas) -> None:
    others.answer_timeout = 0.5
    async with bench(leases=others) as b:
        queue = b.queue()
        queue.leased.lease_lost()
        caller = await now_free(b, queue)
        await b.until(10.4)
        assert caller.is_waiting
        await b.until(10.5)
        assert caller.problem is not None
        assert caller.problem.name == "wait-expired"


@pytest.mark.parametrize("reason", ["waiter", "slot out", "pace", "hold", "hold of the route"])
async def test_it_is_refused_at_once_if_no_lease_could_help(
    others: OtherReplicas, reason: str
) -> None:
    async with bench(leases=others) as b:
        queue = b.queue()
        callers: list[Caller] = []
        if reason == "slot out":
            callers.append(b.join(queue))
        elif reason == "pace":
            b.send(await b.get(queue)).report(Answered())
        elif reason != "waiter":
            queue.leased.obey_hold(HoldLeft(5.0, 5.0), of_route=reason == "hold of the route")
        await b.clock.advance(0)
        queue.leased.lease_lost()
        if reason == "waiter":
            callers.append(b.join(queue))
            await b.clock.advance(0)
        problem = b.admit(queue, 0.0)
        assert problem is not None
        assert problem.name == "queue-full"
        queue.leased.lease_granted(FREE)
        queue.leased.reevaluate()
        await b.all_served(callers)


async def test_a_newcomer_may_be_the_probe_unless_another_will_be(others: OtherReplicas) -> None:
    """Whatever the API named: the store may give the lease."""
    async with bench(leases=others) as b:
        queue = b.queue()
        queue.leased.obey_hold(HoldLeft(2.0, DAY), of_route=False)
        queue.leased.lease_lost()
        assert b.admit(queue, 60.0) is not None
        await b.until(12)
        assert b.admit(queue, 60.0) is None
        probe = b.join(queue)
        await b.clock.advance(0)
        assert b.admit(queue, 60.0) is not None
        queue.leased.lease_granted(FREE)
        queue.leased.reevaluate()
        await b.until(14)  # two seconds without an answer: there may be another probe
        assert probe.got_at == 12
        assert b.admit(queue, 60.0) is not None  # but the first one has not left yet
        b.use(probe)


async def test_an_account_rests_for_its_share_of_the_pace(others: OtherReplicas) -> None:
    others.spread = 2
    async with bench(leases=others) as b:
        b.send(await b.get(b.queue())).report(Answered())
        assert b.account().idle_from() == 11.0


class _Uses(OtherReplicas):
    """Notes the queues whose leases are used."""

    def __init__(self) -> None:
        super().__init__()
        self.used_by: list[SharedQueue] = []

    def used(self, queue: SharedQueue) -> None:
        self.used_by.append(queue)


async def test_a_send_uses_the_lease_of_its_own_queue() -> None:
    leases = _Uses()
    async with bench(leases=leases) as b:
        queue = b.queue()
        b.send(await b.get(queue)).report(Answered())
        assert leases.used_by == [queue.leased]


async def test_a_replica_without_its_store_knows_if_its_moment_has_come() -> None:
    leases = OtherReplicas()
    leases.every = 2
    async with bench(leases=leases) as b:
        assert b.queue().times.may_be_free()
