"""Holds that are true, narrow and foreseen: named waits, routes, organizations, probes, quotas."""

from itertools import pairwise

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.slot import Answered, Refused, Refusing, Unused
from proxy.rules.limits import Limit
from proxy.rules.quota import Quota
from proxy.settings import Account, Pacing, Route, Settings
from tests.kit.pacing import UPSTREAM, Bench, bench

DAY = 41_000.0
PLATFORM, FLOWS = Limit("token.rate", "platform.api"), Limit("flow.rate", "flows")
ORGANIZATION = Limit("org.flow.rate", "flows")


async def refuse(b: Bench, queue: AccountQueue, seconds: float | None, limit: Limit) -> None:
    """Let a request be sent and refused."""
    b.send(await b.get(queue)).report(Refused(seconds, limit))


def held_for(b: Bench, queue: AccountQueue) -> float:
    """Return the seconds until no hold is left on that queue."""
    return max(0.0, queue.holding.until - b.now)


# The named wait


async def test_caller_is_told_what_is_left_of_the_named_wait() -> None:
    """Not what is left until the next look, which is at most five minutes away."""
    async with bench() as b:
        queue = b.queue()
        await refuse(b, queue, DAY, Limit())
        await b.clock.advance(100)
        problem = b.admit(queue, 3600.0)
        assert problem is not None
        assert (problem.name, problem.retry_after) == ("queue-full", 40_900)
        await b.clock.advance(10_000)
        probe = await b.get(queue)
        problem = b.admit(queue, 3600.0)
        assert problem is not None
        assert problem.retry_after == 30_900
        probe.report(Answered())


async def test_one_probe_goes_after_each_clamp_and_a_refused_one_renews_it() -> None:
    async with bench() as b:
        queue = b.queue()
        await refuse(b, queue, DAY, Limit())
        sends = []
        for _ in range(3600):
            await b.clock.advance(1)
            if b.admit(queue, 15.0) is None:
                sends.append(b.now - 10)
                await refuse(b, queue, DAY - sends[-1], Limit())
        assert sends == [300.0 * place for place in range(1, 13)]


async def test_waiters_that_a_named_wait_outlasts_are_refused_at_once() -> None:
    """But for the one that goes as the probe, and those that wait for longer than it."""
    async with bench() as b:
        queue = b.queue()
        first = b.send(await b.get(queue))
        short, probe, other = (b.join(queue, limit=limit) for limit in (60.0, 600.0, 600.0))
        patient = b.join(queue, limit=1500.0)
        await b.clock.advance(0)
        first.report(Refused(1000.0, PLATFORM))
        await b.clock.advance(0)
        for caller in (short, other):
            assert caller.problem is not None
            assert (caller.problem.name, caller.problem.retry_after) == ("queue-full", 1000)
        assert b.waits("refused") == 2
        await b.until(310)
        assert (probe.got_at, patient.is_waiting) == (310.0, True)
        b.send(probe.take()).report(Refused(700.0, PLATFORM))
        await b.until(2000)
        assert patient.got_at == 610.0
        b.use(patient)


async def test_waiters_of_another_route_are_not_refused_for_the_hold_of_one() -> None:
    async with bench() as b:
        first = b.send(await b.get(b.queue()))
        waiting = b.join(b.queue(), limit=60.0)
        elsewhere = [b.join(b.queue("jobs"), limit=60.0) for _ in range(4)]
        await b.clock.advance(0)
        first.report(Refused(1000.0, FLOWS))
        probe = b.join(b.queue(), limit=600.0)
        await b.clock.advance(0)
        assert waiting.problem is not None
        assert await b.all_served(elsewhere) == [10.0, 10.5, 11.0, 11.5]
        await b.all_served([probe])


async def test_waiter_whose_time_ends_with_the_named_wait_goes_on_waiting() -> None:
    async with bench() as b:
        first = b.send(await b.get(b.queue()))
        probe, last = b.join(b.queue(), limit=600.0), b.join(b.queue(), limit=1000.0)
        await b.clock.advance(0)
        first.report(Refused(1000.0, PLATFORM))
        await b.until(309)
        assert (probe.problem, last.problem) == (None, None)
        await b.all_served([probe, last])


async def test_waiter_whose_time_ends_with_the_clamp_may_be_the_probe() -> None:
    async with bench() as b:
        first = b.send(await b.get(b.queue()))
        probe = b.join(b.queue(), limit=300.0)
        await b.clock.advance(0)
        first.report(Refused(1000.0, PLATFORM))
        assert await b.all_served([probe]) == [310.0]


async def test_named_wait_that_is_not_clamped_ends_no_wait() -> None:
    async with bench() as b:
        first = b.send(await b.get(b.queue()))
        waiting = b.join(b.queue(), limit=3.0)
        await b.clock.advance(0)
        first.report(Refused(4.0))
        await b.clock.advance(1)
        assert waiting.is_waiting


async def test_expired_wait_says_what_is_left_of_the_hold() -> None:
    async with bench() as b:
        first = b.send(await b.get(b.queue()))
        waiting = b.join(b.queue(), limit=3.0)
        await b.clock.advance(0)
        first.report(Refused(60.0))
        await b.until(20)
        assert waiting.problem is not None
        assert waiting.problem.retry_after == 57


async def test_refusal_without_a_time_leaves_the_named_wait_as_it_is() -> None:
    async with bench() as b:
        await refuse(b, b.queue(), 1000.0, PLATFORM)
        await b.clock.advance(300)
        await refuse(b, b.queue(), None, PLATFORM)
        assert b.hold_left() == 300.0
        assert b.queue().holds.named_left() == 700.0


async def test_reload_keeps_holds_and_what_was_named() -> None:
    async with bench() as b:
        await refuse(b, b.queue(), DAY, Limit())
        await b.clock.advance(10)
        b.accounts.apply(
            Settings(
                upstream=UPSTREAM,
                accounts=(Account(name="renamed", client_id="id-1"),),
            )
        )
        queue = b.queue(account="renamed")
        assert (held_for(b, queue), queue.holds.named_left()) == (290.0, DAY - 10)


# What a hold covers


async def test_named_namespace_holds_the_account_or_the_route() -> None:
    async with bench() as b:
        await refuse(b, b.queue(), 4.0, FLOWS)
        assert held_for(b, b.queue()) == 4.0
        b.send(await b.get(b.queue("jobs"))).report(Answered())
        assert b.account().allowance.holding.hold is None
        await b.clock.advance(1)
        await refuse(b, b.queue("api", paced=False), 8.0, PLATFORM)
        held = [b.join(b.queue(name)) for name in ("jobs", "exports")]
        await b.clock.advance(7.5)
        assert [caller.slot for caller in held] == [None, None]
        await b.all_served(held)


async def test_exports_go_on_while_another_route_is_held_for_a_day() -> None:
    async with bench() as b:
        await refuse(b, b.queue("api", paced=False), DAY, Limit())
        callers = [b.join(b.queue()) for _ in range(10)]
        assert await b.all_served(callers) == [10 + 0.5 * place for place in range(10)]


async def test_route_says_what_its_refusals_hold() -> None:
    routes = (
        Route(name="exports", paths=("/exports",), paced=True, hold="route"),
        Route(name="api", paths=("/**",), hold="account"),
    )
    async with bench() as b:
        b.accounts.apply(
            Settings(
                upstream=UPSTREAM,
                accounts=(Account(name="london", client_id="id-1"),),
                routes=routes,
            )
        )
        api = b.queue("api", paced=False)
        await refuse(b, b.queue(), 4.0, PLATFORM)
        (await b.get(api)).report(Answered())
        await refuse(b, api, 60.0, FLOWS)
        waiting = b.join(b.queue())
        await b.clock.advance(50)
        assert waiting.slot is None
        await b.all_served([waiting])


async def test_limit_of_an_organization_holds_its_accounts_and_no_other() -> None:
    """On the route that was refused, for its namespace says so; a stranger has no organization."""
    async with bench() as b:
        names = {"london": "ours", "paris": "ours", "rome": "theirs", "oslo": None}
        b.accounts.apply(
            Settings(
                upstream=UPSTREAM,
                accounts=tuple(
                    Account(name=name, client_id=f"id-{name}", organization=organization)
                    for name, organization in names.items()
                ),
            )
        )
        await b.clock.advance(10)
        await refuse(b, b.queue(), 8.0, ORGANIZATION)
        held = {name: held_for(b, b.queue(account=name)) for name in names}
        assert held == {"london": 8.0, "paris": 8.0, "rome": 0.0, "oslo": 0.0}
        assert held_for(b, b.queue("jobs", account="paris")) == 0.0
        state = b.accounts.states()[1]
        assert (state.name, state.routes[0].hold_limit) == ("paris", "org.flow.rate")


async def test_state_names_the_limit_that_holds() -> None:
    async with bench() as b:
        await refuse(b, b.queue(), DAY, FLOWS)
        state = b.accounts.states()[0]
        assert (state.hold_remaining_seconds, state.hold_named_seconds) == (0.0, DAY)
        route = state.routes[0]
        assert (route.hold_remaining_seconds, route.hold_named_seconds) == (300.0, DAY)
        assert route.hold_limit == "flow.rate"
        await refuse(b, b.queue("api", paced=False), 5.0, PLATFORM)
        assert b.accounts.states()[0].hold_limit == "token.rate"
        await refuse(b, b.queue("api", paced=False, account="paris"), None, PLATFORM)
        assert b.accounts.states()[1].hold_limit == "token.rate"


async def test_wait_of_less_than_a_second_is_obeyed_as_it_was_named() -> None:
    async with bench() as b:
        await refuse(b, b.queue("api", paced=False), 0.75, PLATFORM)
        assert b.hold_left() == 0.75


# The probe


async def test_slow_probe_delays_the_others_by_two_seconds() -> None:
    """A caller leaves after the refusal; the next request takes twelve seconds."""
    async with bench() as b:
        await refuse(b, b.queue(), 1.0, Limit())
        slow = b.join(b.queue())
        await b.until(11)
        b.send(slow.take())
        others = [b.join(b.queue()) for _ in range(7)]
        served = await b.all_served(others)
        assert served == [13.0 + 0.5 * place for place in range(7)]
        await b.clock.advance(10)
        slow.take().report(Answered())


async def test_probe_that_is_never_answered_stops_nobody_for_longer() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        await refuse(b, api, 1.0, Limit())
        lost = b.join(api)
        await b.until(11)
        b.send(lost.take())
        others = [b.join(api) for _ in range(7)]
        assert await b.all_served(others) == [13.0] * 7
        lost.take().report(Unused())


async def test_one_refusal_a_second_while_the_api_still_refuses_and_a_probe_hangs() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        await refuse(b, api, 1.0, Limit())
        hanging = b.join(api)
        await b.until(11)
        b.send(hanging.take())
        crowd = [b.join(api, limit=30.0) for _ in range(40)]
        refused_at = []
        while b.now < 31:
            await b.clock.advance(0.125)
            for caller in crowd:
                if caller.slot is not None and caller.slot.is_open:
                    refused_at.append(b.now)
                    b.send(caller.slot).report(Refused(1.0))
        gaps = [later - earlier for earlier, later in pairwise(refused_at)]
        assert len(refused_at) > 10
        assert min(gaps) >= 1.0
        hanging.take().report(Unused())
        await b.all_served([caller for caller in crowd if caller.is_waiting])


async def test_crowd_that_waited_for_a_hold_goes_two_at_a_time_until_the_first_answer() -> None:
    async with bench(Pacing(max_in_flight=8)) as b:
        api = b.queue("api", paced=False)
        await refuse(b, api, 4.0, Limit())
        crowd = [b.join(api) for _ in range(60)]
        await b.until(14)

        def under_way() -> int:
            return sum(caller.slot is not None and caller.slot.is_open for caller in crowd)

        assert under_way() == 1
        await b.until(16)
        assert under_way() == 2
        await b.until(30)
        assert under_way() == 2
        next(caller for caller in crowd if caller.slot is not None).take().report(Answered())
        await b.clock.advance(0)
        assert under_way() == 8
        await b.all_served(crowd)


async def test_probe_beside_a_refused_one_proves_nothing_any_more() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        await refuse(b, api, 1.0, Limit())
        first, second = b.join(api), b.join(api)
        await b.until(13)
        for caller in (first, second):
            b.send(caller.take())
        first.take().report(Refused(2.0))
        probe, waiting = b.join(api), b.join(api)
        await b.until(15)
        b.send(probe.take())
        second.take().report(Answered())
        await b.clock.advance(0)
        assert waiting.slot is None
        probe.take().report(Answered())
        await b.all_served([waiting])


async def test_probe_of_a_hold_that_is_over_proves_nothing_of_the_next_one() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        await refuse(b, api, 1.0, Limit())
        first, second = b.join(api), b.join(api)
        await b.until(13)
        b.send(second.take())
        b.use(first)
        await refuse(b, api, 4.0, Limit())
        probe, waiting = b.join(api), b.join(api)
        await b.until(17)
        b.send(probe.take())
        second.take().report(Answered())
        await b.clock.advance(0)
        assert waiting.slot is None
        probe.take().report(Answered())
        await b.all_served([waiting])


async def test_nothing_leaves_while_it_is_not_known_what_a_refusal_covers() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        refused, connecting = b.send(await b.get(api)), await b.get(api)
        refused.report(Refusing())
        waiting = b.join(b.queue())
        await b.clock.advance(0.5)
        assert waiting.slot is None
        assert not connecting.may_leave(b.now)
        refused.report(Refused(4.0, FLOWS))
        await b.clock.advance(0)
        assert waiting.got_at == 10.5
        assert not connecting.may_leave(b.now)
        connecting.report(Unused())
        b.use(waiting)


async def test_nothing_leaves_until_it_is_known_what_each_of_two_refusals_covers() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        first, second = b.send(await b.get(api)), b.send(await b.get(api))
        for slot in (first, second):
            slot.report(Refusing())
        waiting = b.join(b.queue())
        first.report(Refused(4.0, FLOWS))
        await b.until(11)
        assert waiting.slot is None
        second.report(Refused(4.0, FLOWS))
        assert await b.all_served([waiting]) == [11.0]


async def test_refusal_whose_body_never_ends_holds_nothing_up() -> None:
    async with bench() as b:
        refused = b.send(await b.get(b.queue("api", paced=False)))
        refused.report(Refusing())
        refused.report(Refusing())
        refused.report(Unused())
        b.send(await b.get(b.queue())).report(Answered())


# The quota


async def test_used_up_quota_holds_the_account_until_the_window_ends() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered(Quota(1, 9.0)))
        await b.clock.advance(1)
        b.send(await b.get(b.queue())).report(Answered(Quota(0, 8.0)))
        assert b.hold_left() == 8.0
        assert b.accounts.states()[0].quota_remaining == 0
        assert b.counted("holds_total", account="london", reason="quota") == 1
        waiting = [b.join(b.queue("api", paced=False)) for _ in range(2)]
        assert await b.all_served(waiting) == [19.0, 19.0]
        assert b.accounts.states()[0].quota_remaining is None


async def test_no_more_are_under_way_than_the_quota_has_left() -> None:
    """Each of those may still count; each answer says anew."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        b.send(await b.get(api)).report(Answered(Quota(2, 60.0)))
        under_way = [b.send(await b.get(api)) for _ in range(2)]
        third = b.join(api)
        await b.clock.advance(5)
        assert third.slot is None
        under_way[0].report(Answered(Quota(2, 55.0)))
        await b.clock.advance(0)
        assert third.got_at == 15.0
        under_way[1].report(Answered())
        b.use(third)


async def test_fifteen_exports_pass_a_quota_of_five_in_four_seconds_without_a_refusal() -> None:
    async with bench(Pacing(interval=0.0625)) as b:
        window, used, refusals = 10.0, 0, 0
        callers = [b.join(b.queue()) for _ in range(15)]
        while any(caller.is_waiting or caller.take().is_open for caller in callers):
            await b.clock.advance(0.0625)
            if b.now >= window + 4:
                window, used = b.now, 0
            for caller in callers:
                if caller.slot is not None and caller.slot.is_open:
                    used += 1
                    refusals += used > 5
                    quota = Quota(max(0, 5 - used), window + 4 - b.now)
                    b.send(caller.slot).report(Answered(quota))
        assert refusals == 0
        assert b.now <= 10 + 3 * 4 + 1


async def test_seconds_on_hold_and_seconds_paused_are_counted_together() -> None:
    """Holds of two routes at one time count as one, the longest."""
    async with bench() as b:
        await refuse(b, b.queue(), 4.0, FLOWS)
        await refuse(b, b.queue("api", paced=False), 3.0, FLOWS)
        await b.until(20)
        await b.accounts.operators.pause(b.account(), 5.0)
        await b.until(30)
        b.account().scheduler.holds.count()
        assert b.counted("held_seconds_total", account="london") == 9.0
        b.account().scheduler.holds.count()
        assert b.counted("held_seconds_total", account="london") == 9.0


async def test_a_hold_for_the_pace_alone_names_its_limit() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        slot.report(Refused(0.0, Limit("a.key", "platform.api")))
        assert b.account().state(b.now).hold_limit == "a.key"
