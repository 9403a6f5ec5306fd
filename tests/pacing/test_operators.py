"""Operators pause, resume and slow down an account, on a clock that stands still."""

from itertools import pairwise
from math import inf

import pytest

from proxy.pacing.slot import Answered, Refused
from proxy.rules.limits import Limit
from proxy.rules.orders import Order, Orders, Pause, Resume, Slowdown
from proxy.settings import Account, Pacing, Settings
from tests.kit.pacing import UPSTREAM, Bench, OtherReplicas, bench

CROWD = 100


async def pause(b: Bench, seconds: float = inf) -> None:
    await b.accounts.operators.pause(b.account(), seconds)


async def resume(b: Bench) -> None:
    await b.accounts.operators.resume(b.account())


async def slow_down(b: Bench, interval: float, seconds: float) -> None:
    await b.accounts.operators.slow_down(b.account(), interval, seconds)


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


async def test_a_hundred_waiters_keep_their_order_over_a_pause_and_none_is_lost() -> None:
    async with bench() as b:
        queue = b.queue()
        callers = [b.join(queue) for _ in range(CROWD)]
        for caller in callers:
            caller.is_prompt = True
        await b.until(12.25)  # 5 have gone, at 10, 10.5 ... 12
        await pause(b)
        await b.until(512.0)
        assert sum(caller.got_at >= 0 for caller in callers) == 5
        assert queue.depth == CROWD - 5
        await resume(b)
        times = await b.all_served(callers)
        assert times == sorted(times)
        assert times[4:6] == [12.0, 512.0]
        assert gaps(times[5:]) == [0.5] * (CROWD - 6)


async def test_a_pause_with_an_end_ends_by_itself() -> None:
    async with bench() as b:
        await pause(b, 60.0)
        caller = b.join(b.queue())
        await b.until(69.9)
        assert caller.is_waiting
        await b.until(70.0)
        assert caller.got_at == 70.0
        b.use(caller)


async def test_a_pause_covers_routes_that_are_not_paced() -> None:
    async with bench() as b:
        await pause(b, 60.0)
        caller = b.join(b.queue("api", paced=False))
        await b.until(69.0)
        assert caller.is_waiting
        await b.until(70.0)
        b.use(caller)


async def test_a_slot_that_was_not_used_yet_may_not_leave_in_a_pause() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        assert slot.may_leave(b.now)
        await pause(b)
        assert not slot.may_leave(b.now)
        await resume(b)
        assert slot.may_leave(b.now)
        b.send(slot).report(Answered())


async def test_a_pause_delays_no_other_account() -> None:
    async with bench() as b:
        await pause(b)
        slot = await b.get(b.queue(account="paris"))
        assert b.send(slot).sent_at == 10.0
        slot.report(Answered())


async def test_resuming_ends_no_hold_of_the_api() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Refused(60.0, Limit("token.rate", "platform.api")))
        await pause(b)
        caller = b.join(b.queue())
        await b.until(20.0)
        await resume(b)
        await b.until(69.9)
        assert caller.is_waiting
        await b.until(70.0)
        assert caller.got_at == 70.0
        b.use(caller)


async def test_a_hold_that_ends_in_a_pause_sends_no_probe() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Refused(60.0, Limit("token.rate", "platform.api")))
        await pause(b)
        caller = b.join(b.queue())
        await b.until(100.0)
        assert caller.is_waiting
        await resume(b)
        await b.clock.advance(0)
        assert caller.got_at == 100.0
        b.use(caller)


# Who is admitted, and what the refused are told


async def test_newcomers_are_admitted_as_if_a_pause_without_end_ended_now() -> None:
    async with bench() as b:
        await pause(b)
        waiting = [b.join(b.queue(), limit=100.0) for _ in range(10)]
        await b.clock.advance(0)
        assert b.admit(b.queue(), 10.0) is None  # 10 x 0.5 s
        problem = b.admit(b.queue(), 4.0)
        assert problem is not None
        assert problem.name == "queue-full"
        assert "An operator has paused the account." in problem.detail
        assert problem.retry_after == 30
        assert b.admit(b.queue(), 0.0) is not None  # takes a free slot, and there is none
        await resume(b)
        await b.all_served(waiting)


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 30), (0.999, 60)], ids=str)
async def test_a_caller_refused_in_a_pause_without_end_comes_back_within_a_minute(
    jitter: float, seconds: int
) -> None:
    async with bench() as b:
        b.jitter = jitter
        await pause(b)
        caller = b.join(b.queue(), limit=5.0)
        refused = b.join(b.queue(), limit=0.0)
        await b.until(16.0)
        for one in (caller, refused):
            assert one.problem is not None
            assert (one.problem.name, one.problem.retry_after) == ("wait-expired", seconds)


async def test_a_pause_with_an_end_is_part_of_the_prediction() -> None:
    async with bench() as b:
        await pause(b, 60.0)
        assert b.admit(b.queue(), 70.0) is None
        problem = b.admit(b.queue(), 20.0)
        assert problem is not None
        assert problem.fields["predicted_wait"] == 60.0
        assert 40 <= (problem.retry_after or 0) <= 60


# The interval


async def test_the_ordered_interval_governs_the_very_next_send_and_ends() -> None:
    async with bench() as b:
        queue = b.queue()
        callers = [b.join(queue) for _ in range(CROWD)]
        for caller in callers:
            caller.is_prompt = True
        await b.until(10.75)  # the last went at 10.5
        await slow_down(b, 5.0, 20.0)  # until 30.75
        times = await b.all_served(callers)
        assert times[:7] == [10.0, 10.5, 15.5, 20.5, 25.5, 30.5, 31.0]
        assert gaps(times[5:]) == [0.5] * (CROWD - 6)
        assert b.counted("early_sends_total", account="london", route="exports") == 0


async def test_when_the_interval_ends_before_the_next_send_that_goes_at_the_end() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        await slow_down(b, 3600.0, 60.0)
        caller = b.join(b.queue(), limit=2000.0)
        await b.until(69.9)
        assert caller.is_waiting
        assert not b.accounts.is_stalled()
        await b.until(70.0)
        assert caller.got_at == 70.0
        assert not b.accounts.is_stalled()
        assert caller.take().due_at == 70.0  # it is not late
        b.use(caller)


async def test_a_longer_configured_interval_is_kept() -> None:
    async with bench() as b:
        paris = b.account("paris")
        await b.accounts.operators.slow_down(paris, 2.0, 60.0)
        b.accounts.apply(
            Settings(
                upstream=UPSTREAM,
                accounts=(
                    Account(name="london", client_id="id-1"),
                    Account(name="paris", client_id="id-2", interval=4.0),
                ),
            )
        )
        assert b.queue(account="paris").interval == 4.0


# Orders that replicas share


class Store:
    """A store of orders that is there, or not."""

    def __init__(self, *, is_up: bool = True) -> None:
        self.is_up = is_up
        self.kept: dict[str, list[Order]] = {}

    def refresh(self) -> None:
        self.kept.clear()

    async def keep(self, key: str, order: Order) -> bool:
        self.kept.setdefault(key, []).append(order)
        return self.is_up


@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
async def test_an_order_is_kept_in_the_store_and_says_whether_all_obey(*, is_up: bool) -> None:
    async with bench() as b:
        store = b.accounts.operators.store = Store(is_up=is_up)
        account, operators, wall = b.account(), b.accounts.operators, b.clock.wall()
        assert await operators.pause(account, 60.0) is is_up
        assert await operators.slow_down(account, 5.0, 30.0) is is_up
        assert await operators.resume(account) is is_up
        assert store.kept == {
            account.key: [
                Pause(since=wall, until=70.0),
                Slowdown(since=wall, until=40.0, interval=5.0),
                Resume(),
            ]
        }


async def test_without_a_store_nobody_else_has_to_obey() -> None:
    async with bench() as b:
        assert await b.accounts.operators.pause(b.account(), 60.0)


async def test_orders_of_the_store_are_obeyed_in_the_place_of_all_before() -> None:
    """And end by themselves; an account of which the store says nothing has none."""
    async with bench() as b:
        operators = b.accounts.operators
        await operators.pause(b.account("paris"), 600.0)
        pause = Pause(since=b.clock.wall(), until=70.0)
        operators.obey_shared({b.account().key: Orders(pause=pause)})
        callers = [b.join(b.queue(account=name)) for name in ("london", "paris")]
        assert repr(operators) == "<Operators: orders for 1 accounts>"
        assert await b.all_served(callers) == [70.0, 10.0]
        assert repr(operators) == "<Operators: orders for 0 accounts>"


async def test_orders_of_the_store_for_accounts_that_are_not_configured_change_nothing() -> None:
    async with bench() as b:
        b.accounts.apply(Settings(upstream=UPSTREAM, accounts=()))
        b.accounts.operators.obey_shared({"of another": Orders(pause=Pause(since=0.0))})
        assert b.clock.pending == 0


@pytest.mark.parametrize(("replicas", "at"), [(1, 14.0), (2, 16.0)])
async def test_a_longer_interval_counts_from_the_order_where_others_may_have_sent(
    replicas: int, at: float
) -> None:
    others = OtherReplicas()
    others.replicas = replicas
    async with bench(leases=others) as b:
        assert await b.all_served([b.join(b.queue())]) == [10.0]
        b.queue("api", paced=False)
        await b.until(12)
        await slow_down(b, 4.0, 600.0)
        await pause(b, 1.0)  # changes no interval
        await resume(b)
        (sent,) = await b.all_served([b.join(b.queue())])
        assert sent == at


# A reload


async def test_orders_survive_a_reload_and_a_new_name() -> None:
    async with bench() as b:
        await pause(b)
        await slow_down(b, 5.0, 600.0)
        renamed = Settings(
            upstream=UPSTREAM,
            pacing=Pacing(interval=0.25),
            accounts=(Account(name="bristol", client_id="id-1"),),
        )
        b.accounts.apply(renamed)
        account = b.account("bristol")
        assert account.allowance.control.is_paused(b.now)
        assert account.allowance.interval == 5.0
        await b.accounts.operators.resume(account)


async def test_an_account_that_is_removed_serves_its_waiters() -> None:
    """Nobody could resume it."""
    async with bench() as b:
        await pause(b)
        caller = b.join(b.queue())
        await b.clock.advance(0)
        b.accounts.apply(Settings(upstream=UPSTREAM, accounts=()))
        await b.clock.advance(0)
        b.use(caller)


# What is seen


async def test_a_pause_is_counted_and_shown() -> None:
    async with bench() as b:
        account = b.account()
        await pause(b, 90.0)
        await pause(b, 60.0)  # replaced: the same pause
        labels = {"account": "london", "reason": "operator"}
        assert b.counted("holds_total", **labels) == 1
        await b.clock.advance(20)
        state = account.state(b.now)
        assert state.paused is not None
        assert (state.paused.since, state.paused.remaining_seconds) == (b.clock.wall() - 20, 40.0)
        account.scheduler.holds.count()
        assert b.counted("held_seconds_total", account="london") == 20
        await resume(b)
        assert account.state(b.now).paused is None
        await b.clock.advance(20)
        account.scheduler.holds.count()
        assert b.counted("held_seconds_total", account="london") == 20
        await pause(b)
        assert b.counted("holds_total", **labels) == 2
        state = account.state(b.now)
        assert state.paused is not None
        assert state.paused.remaining_seconds is None
        await resume(b)


async def test_an_interval_is_shown_while_it_lasts() -> None:
    async with bench() as b:
        await slow_down(b, 5.0, 60.0)
        await b.clock.advance(20)
        slowed = b.account().state(b.now).slowed
        assert slowed is not None
        assert (slowed.interval, slowed.remaining_seconds) == (5.0, 40.0)
        assert slowed.since == b.clock.wall() - 20
        await b.clock.advance(40)
        assert b.account().state(b.now).slowed is None


async def test_a_request_that_waits_in_a_pause_is_on_hold() -> None:
    async with bench() as b:
        queue = b.queue()
        before = queue.held_seconds()
        await pause(b, 30.0)
        await b.clock.advance(100)
        assert queue.held_seconds() - before == 30.0


async def test_a_pause_is_no_stall() -> None:
    async with bench() as b:
        await pause(b)
        caller = b.join(b.queue())
        await b.until(100.0)
        assert not b.accounts.is_stalled()
        b.clock.stall(5.0)
        await resume(b)
        await b.clock.advance(0)
        b.use(caller)


async def test_a_queue_counts_a_pause_as_time_that_it_was_held() -> None:
    async with bench() as b:
        queue = b.queue()
        await b.until(12)
        await pause(b)
        await b.until(15)
        assert queue.held_seconds() == 3.0
        await resume(b)
        await b.until(20)
        assert queue.held_seconds() == 3.0
