"""Who may send when: hold, room in flight, order, retries."""

import gc
import weakref

import pytest

from proxy.pacing.slot import Answered, NotSent, Refused, Report, Unused
from proxy.settings import Pacing
from tests.kit.pacing import bench

# Room in flight


async def test_no_more_in_flight_than_there_is_room_for() -> None:
    """Sent and not yet answered counts, on all routes together; room goes to who came first."""
    async with bench(Pacing(max_in_flight=2)) as b:
        api, exports = b.queue("api", paced=False), b.queue()
        first, second = b.send(await b.get(api)), b.send(await b.get(exports))
        third, fourth, fifth = b.join(exports), b.join(api), b.join(exports)
        await b.until(20)
        assert (third.slot, fourth.slot, b.account().allowance.in_flight) == (None, None, 2)
        second.report(Answered())
        await b.until(21)
        assert (third.got_at, fourth.slot) == (20.0, None)
        first.report(Answered())
        await b.until(22)
        assert (fourth.got_at, fifth.slot, b.account().allowance.in_flight) == (21.0, None, 2)
        b.use(fourth)
        b.use(third)
        await b.until(30)
        b.use(fifth)


async def test_room_in_flight_is_given_back_once() -> None:
    async with bench() as b:
        slot, other = await b.get(b.queue()), await b.get(b.queue("api", paced=False))
        b.send(slot).report(Answered())
        slot.report(Unused())
        slot.report(Answered())
        assert b.account().allowance.in_flight == 1
        other.report(Unused())


async def test_answer_of_which_more_is_to_come_takes_room_until_it_has_come() -> None:
    """It ends a hold with its head all the same."""
    async with bench(Pacing(max_in_flight=1)) as b:
        api = b.queue("api", paced=False)
        b.send(await b.get(api)).report(Refused(1.0))
        probe, other = b.join(api), b.join(api)
        await b.until(11)
        b.account().scheduler.take_room()
        b.send(probe.take()).report(Answered())
        await b.until(12)
        allowance = b.account().allowance
        assert (allowance.holding.hold, allowance.in_flight, other.slot) == (None, 1, None)
        b.account().scheduler.make_room()
        await b.until(13)
        assert other.got_at == 12.0
        b.use(other)


async def test_room_is_given_to_the_queue_that_may_use_it() -> None:
    """Who came first but must keep its distance does not stop another route."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        (await b.get(b.queue("api", paced=False))).report(Answered())
        await b.until(11)
        b.use(waiting)


# Order, and who leaves


async def test_newcomer_does_not_overtake_those_whose_slot_is_overdue() -> None:
    """The loop stalled: the newcomer's task runs before the timer that would serve the queue."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        b.clock.stall(5.0)
        newcomer = b.join(b.queue())
        assert await b.all_served([waiting, newcomer]) == [15.0, 15.5]


async def test_request_that_comes_back_goes_before_later_ones() -> None:
    async with bench() as b:
        returning = b.join(b.queue())
        await b.clock.advance(0)
        later = [b.join(b.queue()) for _ in range(2)]
        await b.clock.advance(0)
        b.send(returning.take()).report(Refused(0.0))
        b.rejoin(b.queue(), returning)
        newest = b.join(b.queue())
        served = await b.all_served([returning, *later, newest])
        assert served == [10.5, 11.0, 11.5, 12.0]


@pytest.mark.parametrize(
    "order", ["leaves long before", "leaves just before", "leaves just after", "leaves after"]
)
async def test_caller_that_leaves_costs_the_others_nothing(order: str) -> None:
    """Just before and just after: in the very step of the event loop that frees the slot."""
    async with bench() as b:
        slot = await b.get(b.queue())
        leaver, next_one = b.join(b.queue()), b.join(b.queue())
        await b.until(10.25)
        if order in ("leaves long before", "leaves just before"):
            leaver.cancel()
        if order == "leaves long before":
            await b.clock.advance(0)
        slot.report(Unused())
        if order == "leaves after":
            await b.clock.advance(0)
            leaver.take().report(Unused())
        elif order == "leaves just after":
            leaver.cancel()
        await b.until(10.375)
        assert next_one.got_at == 10.25
        b.use(next_one)
        assert b.waits("abandoned") == (order != "leaves after")
        assert b.waits("sent") == 2 + (order == "leaves after")


async def test_caller_found_gone_is_passed_over_and_its_wait_ends() -> None:
    """The slot is the next one's at once, before the server has noticed who left."""
    async with bench() as b:
        slot = await b.get(b.queue())
        gone, next_one = b.join(b.queue()), b.join(b.queue())
        await b.until(10.25)
        gone.is_present = False
        b.send(slot).report(Answered())
        await b.until(12)
        assert next_one.got_at == 10.75
        b.use(next_one)
        assert gone.slot is None
        assert not gone.is_waiting
        assert (b.waits("abandoned"), b.waits("sent")) == (1, 2)


async def test_caller_gone_before_it_could_wait_takes_no_slot() -> None:
    async with bench() as b:
        gone = b.join(b.queue())
        gone.is_present = False
        next_one = b.join(b.queue())
        await b.clock.advance(0)
        assert gone.slot is None
        assert not gone.is_waiting
        b.use(next_one)


async def test_crowd_that_left_is_forgotten() -> None:
    """Neither the wait of the next nor the memory of the queue knows of it."""
    async with bench(Pacing(max_queue=5000)) as b:
        connecting = await b.get(b.queue())
        stayed = b.join(b.queue())
        await b.clock.advance(0)
        crowd = [b.join(b.queue(), limit=600.0) for _ in range(1000)]
        await b.clock.advance(0)
        assert b.predicted_wait(b.ticket()) == 501.0
        for caller in crowd:
            caller.cancel()
        await b.clock.advance(0)
        assert b.predicted_wait(b.ticket()) == 1.0
        references = [weakref.ref(caller) for caller in crowd]
        del crowd, caller
        await b.until(610)
        newcomer = b.join(b.queue())
        await b.clock.advance(0)
        gc.collect()
        assert [reference for reference in references if reference() is not None] == []
        b.send(connecting).report(Answered())
        assert await b.all_served([stayed, newcomer]) == [610.5, 611.0]


async def test_last_caller_that_leaves_is_forgotten_without_a_next_one() -> None:
    """A caller's request and its body are not kept in memory until another caller comes."""
    async with bench() as b:
        connecting = await b.get(b.queue())
        callers = [b.join(b.queue(), limit=60.0) for _ in range(3)]
        await b.clock.advance(0)
        for caller in callers:
            caller.cancel()
        references = [weakref.ref(caller) for caller in callers]
        del callers, caller
        await b.until(70)
        gc.collect()
        assert [reference() for reference in references] == [None] * 3
        connecting.report(Unused())


# The hold


async def test_hold_covers_every_line_of_the_account_and_no_other_account() -> None:
    """Unpaced routes too."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Refused(4.0))
        held = [b.join(b.queue("api", paced=False)), b.join(b.queue("jobs")), b.join(b.queue())]
        other = b.join(b.queue(account="paris"))
        await b.until(13.99)
        assert [caller.slot for caller in held] == [None, None, None]
        assert other.got_at == 10.0
        b.use(other)
        assert b.hold_left() == pytest.approx(0.01)
        assert await b.all_served(held) == [14.0, 14.0, 14.0]


@pytest.mark.parametrize("second", [1.0, 0.0, None])
async def test_longer_hold_is_never_shortened(second: float | None) -> None:
    async with bench() as b:
        first, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        first.report(Refused(8.0))
        echo.report(Refused(second))
        caller = b.join(b.queue())
        await b.until(30)
        assert caller.got_at == 18.0
        b.use(caller)


async def test_one_probe_goes_when_the_hold_ends_and_the_others_wait_for_its_answer() -> None:
    """A paced request is preferred to one that came before it."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Refused(4.0))
        api = b.queue("api", paced=False)
        first, probe, third = b.join(api), b.join(b.queue()), b.join(api)
        await b.until(15.5)
        assert (first.slot, probe.got_at, third.slot) == (None, 14.0, None)
        b.send(probe.take())
        await b.until(15.75)
        assert (first.slot, third.slot) == (None, None)
        probe.take().report(Answered())
        await b.until(18)
        assert (first.got_at, third.got_at) == (15.75, 15.75)
        b.use(first)
        b.use(third)


async def test_newcomer_does_not_overtake_the_probe() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Refused(4.0))
        await b.until(20)
        probe = await b.get(b.queue())
        newcomer = b.join(b.queue("api", paced=False))
        await b.until(21)
        assert newcomer.slot is None
        b.send(probe).report(Answered())
        await b.clock.advance(0)
        b.use(newcomer)


async def test_refused_probe_prolongs_the_hold() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Refused(4.0))
        first, second = b.join(b.queue()), b.join(b.queue())
        await b.until(14.25)
        b.send(first.take()).report(Refused(8.0))
        await b.until(30)
        assert second.got_at == 22.25
        b.use(second)


@pytest.mark.parametrize("loss", [Unused(), NotSent()])
async def test_probe_that_is_lost_makes_room_for_the_next(loss: Report) -> None:
    """The next one is a probe again: no answer has opened the account."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        b.send(await b.get(b.queue())).report(Refused(4.0))
        lost, second, third = b.join(api), b.join(api), b.join(api)
        await b.until(14.25)
        lost.take().report(loss)
        await b.until(15)
        assert (second.got_at, third.slot) == (14.25, None)
        b.use(second)
        await b.clock.advance(0)
        assert third.got_at == 15.0
        b.use(third)


async def test_probe_that_is_cancelled_as_it_gets_its_slot_makes_room_for_the_next() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        b.send(await b.get(b.queue())).report(Refused(4.0))
        await b.until(14)
        probe = await b.get(api)
        cancelled, third = b.join(api), b.join(api)
        await b.clock.advance(0)
        probe.report(Unused())
        cancelled.cancel()
        await b.clock.advance(0)
        assert third.got_at == 14.0
        b.use(third)


async def test_echo_does_not_end_a_hold() -> None:
    """It answers a request that left before the hold was asked for."""
    async with bench() as b:
        refused, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        refused.report(Refused(4.0))
        caller, second = b.join(b.queue("api", paced=False)), b.join(b.queue("api", paced=False))
        await b.until(12)
        echo.report(Answered())
        await b.until(15)
        assert (caller.got_at, second.slot) == (14.0, None)
        b.use(caller)
        await b.clock.advance(0)
        b.use(second)


async def test_echo_that_comes_beside_the_probe_does_not_end_the_hold() -> None:
    async with bench() as b:
        refused, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        refused.report(Refused(4.0))
        probe, second = b.join(b.queue("api", paced=False)), b.join(b.queue("api", paced=False))
        await b.until(14)
        echo.report(Answered())
        await b.until(15)
        assert second.slot is None
        b.use(probe)
        await b.clock.advance(0)
        b.use(second)


async def test_echo_that_comes_after_the_hold_does_not_spare_the_probe() -> None:
    """Nobody came when the hold was over, but an echo did: still one goes first."""
    async with bench() as b:
        refused, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        refused.report(Refused(4.0))
        await b.until(20)
        echo.report(Answered())
        probe, second = b.join(b.queue("api", paced=False)), b.join(b.queue("api", paced=False))
        await b.until(21)
        assert (probe.got_at, second.slot) == (20.0, None)
        b.use(probe)
        await b.clock.advance(0)
        b.use(second)


async def test_hold_that_an_echo_prolongs_outlasts_the_probe() -> None:
    """An answer to the probe does not cut short what was asked for while it was out."""
    async with bench() as b:
        refused, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        refused.report(Refused(4.0))
        probe, second = b.join(b.queue("api", paced=False)), b.join(b.queue("api", paced=False))
        await b.until(14)
        echo.report(Refused(6.0))
        b.use(probe)
        await b.until(30)
        assert second.got_at == 20.0
        b.use(second)


async def test_hold_grows_where_refusals_in_a_row_name_no_time() -> None:
    """0.5, 1, 2 and 4 seconds, and up to 0.5 more; after a success it begins anew."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        for least in (0.5, 1.0, 2.0, 4.0):
            (await b.get(api)).report(Refused(None))
            assert least <= b.hold_left() <= least + 0.5
            await b.clock.advance(least + 0.5)
        (await b.get(api)).report(Answered())
        (await b.get(api)).report(Refused(None))
        assert 0.5 <= b.hold_left() <= 1.0


async def test_hold_does_not_grow_where_the_time_is_named() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        for _ in range(5):
            (await b.get(api)).report(Refused(2.0))
            assert b.hold_left() == 2.0
            await b.clock.advance(2.0)
        (await b.get(api)).report(Refused(None))
        assert 0.5 <= b.hold_left() <= 1.0


async def test_echoes_are_no_further_failures() -> None:
    """Eight requests refused together are one refusal: the hold after them is the first step."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        for slot in [await b.get(api) for _ in range(8)]:
            slot.report(Refused(None))
        assert 0.5 <= b.hold_left() <= 1.0
        await b.clock.advance(1.0)
        (await b.get(api)).report(Refused(None))
        assert 1.0 <= b.hold_left() <= 1.5


async def test_retry_after_nought_asks_for_the_normal_pace() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue(), cost=2.0))
        await b.until(10.25)
        slot.report(Refused(0.0))
        assert b.hold_left() == 0.75
        callers = [b.join(b.queue()), b.join(b.queue())]
        assert await b.all_served(callers) == [11.0, 11.5]


async def test_retry_after_nought_past_the_normal_pace_asks_for_nothing() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        await b.until(12)
        slot.report(Refused(0.0))
        assert b.hold_left() == 0.0
        b.send(await b.get(b.queue())).report(Answered())
        assert b.counted("held_seconds_total", account="london") == 0.0


async def test_time_on_hold_ends_with_the_hold_and_not_when_somebody_comes() -> None:
    """An hour without traffic after the hold, and before its probe, is no hold."""
    async with bench() as b:
        assert b.held_seconds() == 0.0
        (await b.get(b.queue("api", paced=False))).report(Refused(4.0))
        await b.clock.advance(1.0)
        assert b.held_seconds() == 1.0
        await b.clock.advance(3600)
        assert b.held_seconds() == 4.0
        (await b.get(b.queue("api", paced=False))).report(Refused(2.0))
        await b.clock.advance(3600)
        (await b.get(b.queue("api", paced=False))).report(Answered())
        assert b.held_seconds() == 6.0
        assert b.counted("held_seconds_total", account="london") == 6.0
        assert b.counted("holds_total", account="london", reason="refused") == 1.0


# Sending again


async def test_account_may_repeat_three_requests_a_minute_and_a_tenth_of_its_sends() -> None:
    async with bench() as b:
        assert [b.account().allowance.spend_retry() for _ in range(4)] == [True, True, True, False]
        assert b.account("paris").allowance.spend_retry()
        await b.clock.advance(62)
        for _ in range(60):
            b.send(await b.get(b.queue("api", paced=False))).report(Answered())
        assert sum(b.account().allowance.spend_retry() for _ in range(100)) == 6


async def test_a_slot_given_back_keeps_its_place_before_the_caller_whose_turn_it_would_be() -> None:
    async with bench(Pacing(interval=1.0)) as b:
        b.send(await b.get(b.queue())).report(Answered())
        first, second = b.join(b.queue(), caller="first"), b.join(b.queue(), caller="second")
        await b.clock.advance(1.0)
        connecting, first.slot = first.take(), None
        b.rejoin(b.queue(), first)
        await b.clock.advance(0)
        connecting.report(Unused())
        await b.clock.advance(0)
        assert (first.slot is not None, second.slot is not None) == (True, False)
        second.cancel()
        first.take().report(Unused())
