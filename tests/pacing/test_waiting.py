"""How a request waits: admission, prediction, and waits that end without a slot."""

import pytest

from proxy.pacing.slot import Answered, OnlyIfFree, Refused, Unused, WaitUntil
from proxy.problems import Problem
from proxy.settings import Pacing
from tests.kit.pacing import Caller, bench

# The prediction, and who is admitted


async def test_predicted_wait_counts_the_caller_that_is_just_leaving() -> None:
    async with bench() as b:
        slot = await b.get(b.queue(), cost=2.0)
        assert b.predicted_wait(b.ticket()) == 1.0
        b.send(slot).report(Answered())
        assert b.predicted_wait(b.ticket()) == 1.0


async def test_predicted_wait_of_a_returning_request_counts_only_earlier_ones() -> None:
    async with bench() as b:
        older = b.join(b.queue())
        returning = b.join(b.queue())
        await b.clock.advance(0)
        younger = [b.join(b.queue(), cost=9.0) for _ in range(3)]
        b.use(older)
        await b.until(10.5)
        b.send(returning.take()).report(Refused(8.0))
        b.rejoin(b.queue(), older)
        await b.clock.advance(0)
        assert b.predicted_wait(returning.ticket) == 8.0 + 0.5
        assert b.predicted_wait(b.ticket()) == 8.0 + 0.5 + 13.5
        b.rejoin(b.queue(), returning)
        served = await b.all_served([older, returning, *younger])
        assert served == [18.5, 19.0, 19.5, 24.0, 28.5]


async def test_request_that_comes_back_at_the_first_moment_of_the_clock_is_known() -> None:
    """A monotonic clock counts from nowhere: 0 is a moment like any other."""
    async with bench(warm=False) as b:
        returning = b.join(b.queue())
        await b.clock.advance(0)
        assert returning.ticket.joined_at == 0.0
        crowd = [b.join(b.queue(), cost=9.0) for _ in range(3)]
        await b.until(0.5)
        b.send(returning.take()).report(Refused(4.0))
        assert b.predicted_wait(returning.ticket) == 4.0
        await b.all_served(crowd)


async def test_a_wait_that_a_late_send_would_make_too_long_is_refused() -> None:
    """Nine waits of 0.5 to 4.5 s fit into 5 s. The tenth would end with the last moment."""
    async with bench() as b:
        queue = b.queue()
        b.send(await b.get(queue)).report(Answered())
        callers = []
        for place in range(1, 10):
            assert b.admit(queue, 5.0) is None
            callers.append(b.join(queue, limit=5.0))
            await b.clock.advance(0)
            assert queue.depth == place
        refused = b.admit(queue, 5.0)
        assert refused is not None
        assert await b.all_served(callers) == [10.5 + 0.5 * place for place in range(9)]


@pytest.mark.parametrize(("limit", "retry_after"), [(10.4, 1), (5.5, 6), (0.5, 11), (0.0, 11)])
async def test_refusal_says_how_long_the_wait_would_be_and_when_to_return(
    limit: float, retry_after: int
) -> None:
    """Whole seconds, after which the wait is within the limit."""
    async with bench() as b:
        b.send(await b.get(b.queue(), cost=2.0)).report(Answered())
        callers = [b.join(b.queue()) for _ in range(19)]
        await b.clock.advance(0)
        problem = b.admit(b.queue(), limit)
        assert problem is not None
        assert (problem.name, problem.status) == ("queue-full", 429)
        assert problem.fields == {"predicted_wait": 10.5}
        assert problem.retry_after == retry_after
        assert b.waits("refused") == 1
        await b.all_served(callers)


async def test_refused_callers_are_told_different_moments() -> None:
    """One interval apart, so that they return at the pace at which the queue empties."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        callers = [b.join(b.queue()) for _ in range(30)]
        await b.clock.advance(0)
        refused = [b.admit(b.queue(), 15.0) for _ in range(8)]
        assert [problem.retry_after for problem in refused if problem] == [1, 2, 2, 3, 3, 4, 4, 5]
        await b.all_served(callers)


async def test_newcomer_that_would_push_an_admitted_waiter_out_is_refused() -> None:
    """A batch that fills its limit keeps its promise; a person is admitted once there is room."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        batch = [b.join(b.queue(), limit=5.0, caller="batch") for _ in range(9)]
        await b.clock.advance(0)
        assert b.admit(b.queue(), 5.0, caller="person") is not None
        await b.clock.advance(0.5)
        b.use(batch[0])
        batch[-1].cancel()
        await b.clock.advance(0)
        assert b.admit(b.queue(), 5.0, caller="person") is None
        await b.all_served(batch[1:-1])


async def test_waiter_that_is_late_anyway_keeps_nobody_out() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        late = [b.join(b.queue(), limit=0.6, caller="batch") for _ in range(3)]
        await b.clock.advance(0)
        assert b.admit(b.queue(), 5.0, caller="person") is None
        await b.clock.advance(0.5)
        b.use(late[0])


async def test_queue_holds_no_more_than_its_length() -> None:
    """Its end is no further away than the limit, and yet there is no place."""
    async with bench(Pacing(max_queue=3)) as b:
        slot = await b.get(b.queue())
        callers = [b.join(b.queue()) for _ in range(3)]
        await b.clock.advance(0)
        problem = b.admit(b.queue(), 1000.0)
        assert problem is not None
        assert problem.name == "queue-full"
        assert problem.fields == {"predicted_wait": 2.0}
        assert problem.retry_after == 1
        callers[1].cancel()
        await b.clock.advance(0)
        assert b.admit(b.queue(), 1000.0) is None
        slot.report(Unused())
        await b.all_served([callers[0], callers[2]])


async def test_caller_that_will_not_wait_is_admitted_to_a_free_slot() -> None:
    async with bench() as b:
        assert b.admit(b.queue(), 0.0) is None
        b.send(await b.get(b.queue(), limit=0.0)).report(Answered())
        await b.clock.advance(0.5)
        assert b.admit(b.queue(), 0.0) is None
        b.send(await b.get(b.queue(), limit=0.0)).report(Answered())


async def test_caller_that_will_not_wait_is_refused_when_no_slot_is_free() -> None:
    """For whatever reason: pace, a slot out, room, hold, a probe, somebody who waits."""
    async with bench(Pacing(max_in_flight=2)) as b:
        exports, api = b.queue(), b.queue("api", paced=False)

        def refused() -> tuple[str | None, str | None]:
            problems = (b.admit(queue, 0.0) for queue in (exports, api))
            paced, unpaced = (problem.name if problem else None for problem in problems)
            return paced, unpaced

        slot = await b.get(exports)
        assert refused() == ("queue-full", None)
        b.send(slot)
        assert refused() == ("queue-full", None)
        other = await b.get(api)
        await b.clock.advance(1)
        assert refused() == ("queue-full", "queue-full")
        other.report(Answered())
        assert refused() == (None, None)
        slot.report(Refused(2.0))
        assert refused() == ("queue-full", "queue-full")
        await b.clock.advance(2)
        assert refused() == (None, None)
        probe = await b.get(api)
        assert refused() == ("queue-full", "queue-full")
        waiting = b.join(api)
        await b.clock.advance(0)
        probe.report(Answered())
        await b.clock.advance(0)
        waiting.take().report(Answered())
        assert refused() == (None, None)


async def test_costs_that_do_not_add_up_exactly_keep_nobody_out() -> None:
    """Rounding errors of those who left are no wait."""
    async with bench() as b:
        slot = await b.get(b.queue())
        callers = [b.join(b.queue(), cost=cost) for cost in (1.1, 2.2, 3.3, 1.7)]
        await b.clock.advance(0)
        for caller in callers:
            caller.cancel()
        await b.clock.advance(0)
        slot.report(Unused())
        assert b.predicted_wait(b.ticket()) == 0.0
        assert b.admit(b.queue(), 0.0) is None


# Waits that end without a slot


async def test_wait_expires_at_the_limit_and_no_sooner() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        caller = b.join(b.queue(), limit=3.0)
        await b.until(12.99)
        assert caller.is_waiting
        await b.until(13.0)
        assert caller.problem is not None
        assert (caller.problem.name, caller.problem.status) == ("wait-expired", 429)
        assert caller.problem.retry_after == 1
        assert b.waits("expired") == 1
        slot.report(Unused())


async def test_expired_wait_says_when_the_hold_that_grew_lets_one_in() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        caller = b.join(b.queue(), limit=3.0)
        await b.clock.advance(0)
        slot.report(Refused(60.0))
        await b.until(13)
        assert caller.problem is not None
        assert caller.problem.retry_after is not None
        assert 57.0 - 3.0 <= caller.problem.retry_after <= 57.0


async def test_expired_wait_leaves_the_place_to_the_others() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        b.join(b.queue(), limit=1.0)
        next_one = b.join(b.queue())
        await b.until(12)
        slot.report(Unused())
        await b.until(13)
        assert next_one.got_at == 12.0
        b.use(next_one)


async def test_an_expired_caller_is_not_told_to_wait_behind_itself() -> None:
    """The slot that it waited for is due 2 s after its limit."""
    async with bench(Pacing(interval=10.0)) as b:
        b.send(await b.get(b.queue())).report(Answered())
        late = b.join(b.queue(), limit=8.0)
        await b.clock.advance(8.0)
        assert late.problem is not None
        assert (late.problem.name, late.problem.retry_after) == ("wait-expired", 2)


async def test_deadline_that_passes_in_a_stall_of_the_loop_takes_no_slot() -> None:
    """The slot fell due first, but when it is offered the wait is over."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        late, next_one = b.join(b.queue(), limit=1.0), b.join(b.queue())
        await b.clock.advance(0)
        b.clock.stall(5.0)
        await b.clock.advance(0)
        assert late.problem is not None
        assert late.problem.name == "wait-expired"
        assert next_one.got_at == 15.0
        b.use(next_one)


async def test_drain_refuses_waiters_and_newcomers() -> None:
    """What has its slot already is sent; nothing else is."""
    async with bench() as b:
        slot = await b.get(b.queue())
        waiting = [b.join(b.queue()), b.join(b.queue("jobs")), b.join(b.queue(account="paris"))]
        await b.clock.advance(0)
        b.use(waiting[1])
        b.use(waiting[2])
        b.drain()
        refused = b.admit(b.queue("api", paced=False), 10.0)
        b.send(slot).report(Refused(0.0))
        returning = b.rejoin(b.queue(), Caller(b.ticket()))
        await b.until(20)
        returning_later = b.rejoin(b.queue(), Caller(b.ticket()))
        await b.until(21)
        for problem in (waiting[0].problem, refused, returning.problem, returning_later.problem):
            assert problem is not None
            assert (problem.name, problem.status) == ("draining", 503)
            assert (problem.retry_after, problem.close) == (1, True)
        assert b.waits("drained") == 1


async def test_wait_that_ends_twice_in_one_step_is_counted_once() -> None:
    """Drained, and gone before it could be told."""
    async with bench() as b:
        slot = await b.get(b.queue())
        caller = b.join(b.queue(), limit=5.0)
        await b.clock.advance(0)
        b.drain()
        b.drain()
        caller.cancel()
        slot.report(Unused())
        await b.until(20)
        assert (b.waits("drained"), b.waits("abandoned"), b.waits("expired")) == (1, 0, 0)


async def test_gone_caller_that_was_not_told_yet_is_not_drained() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        caller = b.join(b.queue())
        await b.clock.advance(0)
        caller.cancel()
        b.drain()
        slot.report(Unused())
        await b.clock.advance(0)
        assert (b.waits("drained"), b.waits("abandoned")) == (0, 1)


async def test_request_that_was_taken_along_in_vain_takes_its_turn_again() -> None:
    """It had no slot, so it goes before no caller whose turn it is."""
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Answered())
        first, other, taken = (b.join(b.queue(), caller=name) for name in "aba")
        await b.until(10.5)
        b.use(first)
        taken.ticket.take_along()
        await b.clock.advance(0)
        assert (taken.slot, taken.problem) == (None, None)
        assert b.waits("merged") == 1
        b.rejoin(b.queue(), taken)
        sent = await b.all_served([other, taken])
    assert sent == [11.0, 11.5]


async def test_newcomer_that_would_wait_until_after_the_end_is_told_so() -> None:
    """The proxy ends at a moment that is known: nobody waits for what cannot come."""
    async with bench() as b:
        b.closes_at = 11.0
        callers = [b.join(b.queue()) for _ in range(2)]
        await b.clock.advance(0)
        assert b.admit(b.queue(), 60.0) is None  # it would be sent at 11.0
        callers.append(b.join(b.queue()))
        await b.clock.advance(0)
        problem = b.admit(b.queue(), 60.0)
        assert problem is not None
        assert problem.name == "draining"
        assert (b.waits("drained"), b.waits("refused")) == (1, 0)
        labels = {"account": "london", "route": "exports", "outcome": "drained"}
        assert b.counted("queue_wait_seconds_sum", **labels) == 0
        await b.all_served(callers)


async def test_expired_caller_is_told_its_own_turn_among_the_callers() -> None:
    """Its other requests go before the one it would send again."""
    async with bench() as b:
        slot = await b.get(b.queue())
        expired = b.join(b.queue(), limit=3.0, caller="a")
        rest = [b.join(b.queue(), caller="a") for _ in range(20)]
        await b.until(13)
        assert expired.problem is not None
        assert expired.problem.retry_after in (8, 9)  # in 10.5 seconds, and it would wait almost 3
        slot.report(Unused())
        await b.all_served(rest)


async def test_caller_refused_on_hold_comes_back_behind_the_crowd_that_waits() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).report(Refused(4.0))
        crowd = [b.join(b.queue()) for _ in range(20)]
        await b.clock.advance(0)
        problem = b.admit(b.queue(), 1.0)
        assert problem is not None
        assert problem.retry_after == 14  # in fourteen seconds, of which it would wait almost one
        await b.all_served(crowd)


async def test_refused_caller_is_told_in_words_why_and_what_to_do() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        callers = [b.join(b.queue(), limit=limit) for limit in (3.0, 1000.0)]
        await b.clock.advance(0)
        problem = b.admit(b.queue(), 1.0)
        assert problem is not None
        assert problem.detail == (
            "A request sent now would wait 1.5 s, behind 2 others."
            " Come back after Retry-After,"
            " or wait longer, as far as Prefer: wait and pacing.max_wait allow it."
        )
        assert problem.fields == {"predicted_wait": 1.5}
        assert b.waits("refused") == 1
        labels = {"account": "london", "route": "exports", "outcome": "refused"}
        assert b.counted("queue_wait_seconds_sum", **labels) == 0  # it did not wait
        await b.accounts.operators.pause(b.account(), 600.0)
        problem = b.admit(b.queue(), 1.0)
        assert problem is not None
        assert "others. An operator has paused the account. Come back" in problem.detail
        await b.until(13)
        assert callers[0].problem is not None
        assert callers[0].problem.detail == (
            "No slot came within 3.0 s. An operator has paused the account."
        )
        slot.report(Unused())
        await b.all_served(callers[1:])


async def test_caller_that_finds_no_place_is_told_which_bound_it_met() -> None:
    async with bench(Pacing(max_queue=1)) as b:
        slot = await b.get(b.queue())
        caller = b.join(b.queue())
        await b.clock.advance(0)
        problem = b.admit(b.queue(), 1000.0)
        assert problem is not None
        assert problem.detail.endswith("or ask the operator to raise pacing.max_queue.")
        slot.report(Unused())
        await b.all_served([caller])


async def test_prediction_knows_the_request_that_is_not_answered_yet() -> None:
    """Without room in flight the wait is as long as that one, or as answers were of late."""
    async with bench(Pacing(max_in_flight=1)) as b:
        b.account().scheduler.take_room()  # of an answer of which more is to come
        assert b.predicted_wait(b.ticket()) == 0.0  # no answer has come yet
        b.account().scheduler.make_room()
        slot = b.send(await b.get(b.queue()))
        await b.until(16)
        assert b.predicted_wait(b.ticket()) == 6.0
        slot.report(Answered())
        await b.until(20)
        assert b.predicted_wait(b.ticket()) == 0.0
        b.account().scheduler.take_room()
        assert b.predicted_wait(b.ticket()) == 6.0
        b.account().scheduler.make_room()
        b.send(await b.get(b.queue())).report(Answered())  # at once
        b.account().scheduler.take_room()
        assert b.predicted_wait(b.ticket()) == 4.5  # a quarter less
        b.account().scheduler.make_room()


async def test_no_slot_is_free_while_the_proxy_shuts_down() -> None:
    async with bench() as b:
        queue, ticket = b.queue(), b.ticket()
        b.is_draining = True
        assert b.accounts.waiting.free_slot(queue, ticket, OnlyIfFree()) is None
        b.is_draining = False
        slot = b.accounts.waiting.free_slot(queue, ticket, OnlyIfFree())
        assert slot is not None
        slot.report(Unused())


async def test_sends_are_counted_for_the_page_with_their_distance() -> None:
    async with bench() as b:
        await b.all_served([b.join(b.queue()) for _ in range(3)])
        sends = b.metrics.history.sends("london", b.now)["exports"]
        assert [(span.count, span.smallest_gap) for span in sends if span.count] == [(3, 0.5)]


async def test_a_wait_that_ends_now_still_takes_a_free_slot() -> None:
    async with bench() as b:
        slot = b.accounts.waiting.free_slot(b.queue(), b.ticket(), WaitUntil(b.now))
        assert slot is not None
        slot.report(Unused())


async def test_a_wait_that_is_over_when_it_begins_takes_no_time() -> None:
    async with bench() as b:
        with pytest.raises(Problem, match=r"^No slot came within 0\.0 s\.") as raised:
            await b.accounts.waiting.slot(b.queue(), b.ticket(), WaitUntil(b.now - 1.0))
        assert raised.value.name == "wait-expired"
        labels = {"account": "london", "route": "exports", "outcome": "expired"}
        assert b.waits("expired") == 1
        assert b.counted("queue_wait_seconds_sum", **labels) == 0.0


async def test_an_account_whose_pace_is_kept_is_not_observed() -> None:
    async with bench() as b:
        (await b.get(b.queue())).report(Unused())
        assert b.counted("would_wait_seconds_count", account="london", route="exports") == 0.0


async def test_a_wait_of_less_than_a_second_is_admitted_if_it_is_long_enough() -> None:
    async with bench() as b:
        queue = b.queue()
        b.send(await b.get(queue)).report(Answered())
        assert b.admit(queue, 0.6) is None
        assert b.admit(queue, 0.5) is not None
