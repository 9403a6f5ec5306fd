"""What a store asks a queue, and what it tells it; the clock stands still."""

from math import inf

import pytest

from proxy.pacing.leases import FREE, NOT_OURS, HoldLeft, Lease
from proxy.pacing.slot import Answered
from proxy.settings import Pacing
from tests.kit.pacing import bench

INTERVAL = 0.5


async def test_a_queue_that_lost_its_lease_sends_when_it_has_one_again() -> None:
    async with bench() as b:
        queue = b.queue()
        queue.leased.lease_lost()
        caller = b.join(queue)
        await b.until(20)
        assert (caller.slot, queue.leased.lease) == (None, NOT_OURS)
        queue.leased.lease_granted(Lease(21.0, 30.0))
        queue.leased.reevaluate()
        await b.until(25)
        assert caller.got_at == 21
        b.use(caller)


async def test_a_lease_that_ran_out_sends_nothing() -> None:
    async with bench() as b:
        queue = b.queue()
        queue.leased.lease_granted(Lease(10.0, 12.0))
        await b.until(12.1)
        caller = b.join(queue)
        await b.until(20)
        assert caller.slot is None
        queue.leased.lease_granted(FREE)
        queue.leased.reevaluate()
        await b.clock.advance(0)
        b.use(caller)


async def test_without_the_store_the_queue_goes_on_when_its_next_lease_was_expected() -> None:
    async with bench() as b:
        queue = b.queue()
        queue.leased.lease_lost()
        queue.leased.lease_expected(13.0, 2)
        caller = b.join(queue)
        queue.leased.store_lost()
        queue.leased.reevaluate()
        await b.until(20)
        assert caller.got_at == 13
        assert queue.leased.lease == Lease(13.0, inf)
        b.use(caller)


async def test_a_route_that_is_not_paced_needs_no_lease_without_the_store() -> None:
    async with bench() as b:
        queue = b.queue("api", paced=False)
        queue.leased.lease_expected(99.0, 2)
        queue.leased.store_lost()
        assert queue.leased.lease == FREE


async def test_a_lease_is_wanted_while_a_waiter_could_use_it() -> None:
    async with bench(Pacing(max_in_flight=1)) as b:
        queue = b.queue()
        assert not queue.leased.wants_lease()
        queue.leased.lease_lost()
        caller = b.join(queue)
        await b.clock.advance(0)
        assert queue.leased.wants_lease()
        other = await b.get(b.queue("api", paced=False))
        assert not queue.leased.wants_lease()  # nothing more may be in flight
        b.send(other).report(Answered())
        caller.cancel()


async def test_a_lease_is_wanted_on_hold_too() -> None:
    """It is asked for the moment at which the hold ends."""
    async with bench() as b:
        queue = b.queue()
        queue.leased.obey_hold(HoldLeft(5.0, 5.0), of_route=False)
        caller = b.join(queue)
        await b.clock.advance(0)
        assert queue.leased.wants_lease()
        await b.until(15)
        b.use(caller)


async def test_pace_left_counts_from_the_last_send_of_this_replica() -> None:
    async with bench() as b:
        queue = b.queue()
        assert queue.leased.pace_left() == 0  # it has sent nothing
        b.send(await b.get(queue)).report(Answered())
        assert queue.leased.pace_left() == INTERVAL
        await b.until(10.25)
        assert queue.leased.pace_left() == INTERVAL / 2
        await b.until(11)
        assert queue.leased.pace_left() == 0


async def test_a_replica_that_has_just_started_keeps_no_other_back() -> None:
    """It waits for an interval itself, since it cannot know what was sent before."""
    async with bench(warm=False) as b:
        queue = b.queue()
        assert queue.leased.pace_left() == 0
        assert await b.all_served([b.join(queue)]) == [INTERVAL]


@pytest.mark.parametrize("of_route", [True, False], ids=["route", "account"])
async def test_a_hold_of_another_replica_keeps_what_it_covers_back(*, of_route: bool) -> None:
    async with bench() as b:
        queue, other = b.queue(), b.queue("api", paced=False)
        queue.leased.obey_hold(HoldLeft(5.0, 60.0), of_route=of_route)
        assert queue.leased.hold_left(of_route=of_route) == HoldLeft(5.0, 60.0)
        assert not queue.leased.hold_left(of_route=not of_route)
        assert queue.holds.seconds() == 0
        caller, free = b.join(queue), b.join(other)
        free.is_prompt = True
        await b.until(14.9)
        assert caller.slot is None
        assert (free.got_at == 10) is of_route
        assert queue.holds.seconds() == pytest.approx(4.9)
        await b.until(15)
        assert caller.got_at == 15
        await b.all_served([caller, free])


async def test_a_hold_is_over_when_another_replica_has_seen_its_end() -> None:
    """Before, one request alone goes first; from then on the account has its pace again."""
    async with bench() as b:
        queue = b.queue()
        queue.leased.obey_hold(HoldLeft(2.0, 60.0), of_route=True)
        callers = [b.join(queue) for _ in range(3)]
        queue.leased.obey_end_of_hold(of_route=True)
        await b.until(11.9)
        assert callers[0].slot is None  # the hold itself is not over
        await b.until(12)
        first = b.send(callers[0].take())
        await b.until(13)
        assert callers[1].slot is None  # the first one's answer must come first
        queue.leased.obey_end_of_hold(of_route=True)
        await b.clock.advance(0)
        assert callers[1].got_at == 13
        assert not queue.leased.hold_left(of_route=True)
        first.report(Answered())
        await b.all_served(callers[1:])


async def test_the_distance_to_another_replica_is_kept() -> None:
    async with bench() as b:
        queue = b.queue()
        b.send(await b.get(queue)).report(Answered())
        queue.leased.keep_distance(3)
        assert await b.all_served([b.join(queue)]) == [10 + 3 * INTERVAL]


async def test_waiters_are_refused_where_nothing_keeps_the_pace() -> None:
    async with bench() as b:
        queue = b.queue()
        queue.leased.lease_lost()
        callers = [b.join(queue) for _ in range(2)]
        await b.clock.advance(0)
        queue.leased.refuse_waiters()
        await b.clock.advance(0)
        assert [one.problem.name for one in callers if one.problem] == ["store-unavailable"] * 2


async def test_a_queue_says_in_the_log_whose_it_is_and_what_lease_it_has() -> None:
    async with bench() as b:
        leased = b.queue().leased
        assert repr(leased) == f"<LeasedQueue london/exports: <QueueLease {FREE}>>"
        assert (leased.key, leased.route) == (b.account().allowance.key, "exports")


@pytest.mark.parametrize(
    ("left", "other", "is_longer"),
    [
        (HoldLeft(2.0, 2.0), HoldLeft(1.0, 9.0), True),
        (HoldLeft(1.0, 10.0), HoldLeft(2.0, 9.0), True),
        (HoldLeft(2.0, 9.0), HoldLeft(2.0, 9.0), False),
        (HoldLeft(), HoldLeft(), False),
    ],
)
def test_a_hold_outlasts_another_by_either_time(
    left: HoldLeft, other: HoldLeft, *, is_longer: bool
) -> None:
    assert left.outlasts(other) is is_longer


@pytest.mark.parametrize(
    ("left", "is_hold"), [(HoldLeft(), False), (HoldLeft(0.1), True), (HoldLeft(0.0, 0.1), True)]
)
def test_no_seconds_left_are_no_hold(left: HoldLeft, *, is_hold: bool) -> None:
    assert bool(left) is is_hold
