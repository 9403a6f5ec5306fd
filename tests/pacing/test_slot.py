"""A slot between its grant and its send."""

from proxy.pacing.leases import FREE
from proxy.pacing.slot import Answered, Ending, Refused, Slot, Ticket, Unused
from proxy.rules.limits import Limit
from proxy.settings import Pacing
from tests.kit.pacing import Bench, bench


def may_leave(b: Bench, slot: Slot) -> bool:
    return slot.may_leave(b.now)


async def test_slot_may_be_used_as_long_as_nothing_has_changed() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        await b.until(15)
        assert may_leave(b, slot)
        b.send(slot).report(Answered())


async def test_hold_that_begins_while_a_holder_connects_is_obeyed() -> None:
    """They come back, in the order in which they came; one goes first when the hold ends."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        first = b.send(await b.get(api))
        jobs = b.queue("jobs", paced=False)
        others = [b.join(api), b.join(api), b.join(jobs)]
        await b.clock.advance(0)
        first.report(Refused(4.0))
        for other in others:
            assert not may_leave(b, other.take())
        for other in reversed(others):
            other.take().report(Unused())
            b.rejoin(jobs if other is others[2] else api, other)
        await b.until(13)
        assert [other.is_waiting for other in others] == [True] * 3
        await b.until(15)
        assert [other.is_waiting for other in others] == [False, True, True]
        assert may_leave(b, others[0].take())
        b.use(others[0])
        await b.all_served(others[1:])


async def test_probe_may_leave_once_the_hold_is_over_and_not_if_it_was_prolonged() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        first, echo = b.send(await b.get(api)), b.send(await b.get(api))
        first.report(Refused(2.0))
        probe = b.join(api)
        await b.until(12)
        assert may_leave(b, probe.take())
        echo.report(Refused(4.0))
        assert not may_leave(b, probe.take())
        await b.until(16)
        assert may_leave(b, probe.take())
        b.use(probe)


async def test_pace_that_grows_while_a_holder_connects_is_obeyed() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        await b.until(11)
        slot = await b.get(b.queue())
        b.account().allowance.own_interval = 3.0
        assert not may_leave(b, slot)
        await b.until(13)
        assert may_leave(b, slot)
        slot.report(Unused())


async def test_lease_that_runs_out_while_a_holder_connects_is_not_used() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        b.queue().leased.lease_lost()
        assert not may_leave(b, slot)
        b.queue().leased.lease_granted(FREE)
        slot.report(Unused())


async def test_caller_that_leaves_or_is_late_while_connecting_is_not_sent() -> None:
    async with bench() as b:
        gone, late = b.join(b.queue()), b.join(b.queue("api", paced=False), limit=1.0)
        await b.until(11)
        assert may_leave(b, gone.take())
        assert may_leave(b, late.take())
        gone.is_present = False
        await b.until(11.5)
        assert not may_leave(b, gone.take())
        assert not may_leave(b, late.take())
        gone.take().report(Unused())
        late.take().report(Unused())


async def test_caller_that_will_not_wait_may_still_connect() -> None:
    async with bench() as b:
        slot = await b.get(b.queue(), limit=0.0)
        await b.until(11)
        assert may_leave(b, slot)
        slot.report(Unused())


async def test_request_that_comes_back_too_late_gets_no_slot_though_one_is_free() -> None:
    async with bench() as b:
        late = b.join(b.queue(), limit=-0.5)
        await b.clock.advance(0)
        assert late.slot is None
        assert late.problem is not None
        assert (late.problem.name, late.problem.retry_after) == ("wait-expired", 1)
        assert b.waits("expired") == 1


async def test_slot_that_is_left_unused_is_given_back() -> None:
    async with bench() as b:
        with await b.get(b.queue()) as slot:
            waiting = b.join(b.queue())
            await b.clock.advance(0)
            assert (waiting.slot, slot.is_open) == (None, True)
        assert not slot.is_open
        assert await b.all_served([waiting]) == [10.0]


async def test_caller_that_was_there_a_moment_ago_is_not_looked_for_again() -> None:
    """To look takes a system call; for five milliseconds it is known."""
    async with bench() as b:
        caller = b.join(b.queue())
        await b.clock.advance(0)
        caller.is_present = False
        slot = caller.take()
        assert slot.may_leave(b.now + 0.004)
        assert not slot.may_leave(b.now + 0.005)
        slot.report(Unused())


async def test_probe_of_a_held_route_may_leave_once_the_hold_is_over() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        slot = b.send(await b.get(api))
        slot.report(Refused(2.0, Limit(namespace="flows")))
        probe = b.join(api)
        await b.until(12)
        assert may_leave(b, probe.take())
        b.use(probe)


async def test_a_slot_that_comes_late_was_due_when_the_pace_allowed_it() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        late = b.join(b.queue())
        await b.until(10.25)
        b.clock.stall(0.75)
        await b.clock.advance(0)
        slot = late.take()
        assert (slot.granted_at, slot.due_at, slot.not_before) == (11.0, 10.5, 10.5)
        b.use(late)


async def test_a_slot_that_waited_for_room_was_due_when_there_was_room() -> None:
    async with bench(Pacing(max_in_flight=1)) as b:
        first = b.send(await b.get(b.queue()))
        waiting = b.join(b.queue())
        await b.until(13)
        first.report(Answered())
        await b.clock.advance(0)
        assert waiting.take().due_at == 13.0
        b.use(waiting)


def test_a_ticket_that_is_in_no_queue_has_no_wait_to_end() -> None:
    ticket = Ticket(1)
    ticket.take_along()
    ticket.end(Ending.DRAINED)
    assert not ticket.is_waiting
