"""An account that is only observed: nothing waits, and what would have been is counted."""

from proxy.pacing.slot import Answered, Refused
from proxy.rules.limits import Limit
from proxy.settings import Account, Pacing, Settings
from tests.kit.pacing import UPSTREAM, Bench, Caller, bench

PLATFORM = Limit("token.rate", "platform.api")
FLOWS = Limit("flow.rate", "flows")
LABELS = {"account": "london", "route": "exports"}


def settings(mode: str, **pacing: object) -> Settings:
    return Settings(
        upstream=UPSTREAM,
        pacing=Pacing.model_validate({"mode": mode, **pacing}),
        accounts=(Account(name="london", client_id="id-1"),),
    )


def come(b: Bench, count: int, *, limit: float = 1000.0) -> list[Caller]:
    callers = [b.join(b.queue(), limit=limit) for _ in range(count)]
    for caller in callers:
        caller.is_prompt = True
    return callers


async def test_all_that_come_at_once_leave_at_once() -> None:
    async with bench(mode="observe") as b:
        callers = come(b, 20)  # more than may be in flight
        await b.clock.advance(0)
        assert [caller.got_at for caller in callers] == [10.0] * 20
        assert b.counted("would_wait_seconds_count", **LABELS) == 20
        assert b.counted("would_wait_seconds_sum", **LABELS) == sum(0.5 * n for n in range(20))
        assert b.counted("would_refuse_total", **LABELS) == 0
        assert b.counted("early_sends_total", **LABELS) == 0
        assert b.waits("sent") == 20


async def test_what_is_slow_to_leave_does_not_hold_back_the_others() -> None:
    """Each keeps its slot; nobody has sent yet, and all are in flight."""
    async with bench(mode="observe") as b:
        slots = [await b.get(b.queue()) for _ in range(20)]
        assert all(slot.may_leave(b.now) for slot in slots)
        for slot in slots:
            b.send(slot).report(Answered())


async def test_a_request_that_would_be_refused_is_sent_and_counted() -> None:
    async with bench(mode="observe") as b:
        assert b.admit(b.queue(), 0.7) is None
        callers = come(b, 5, limit=0.7)
        await b.clock.advance(0)
        assert [caller.got_at for caller in callers] == [10.0] * 5
        assert b.counted("would_refuse_total", **LABELS) == 3
        assert b.counted("would_wait_seconds_count", **LABELS) == 2


async def test_a_hold_keeps_nothing_back_and_is_part_of_what_would_be() -> None:
    async with bench(mode="observe") as b:
        b.send(await b.get(b.queue())).report(Refused(60.0, PLATFORM))
        assert b.hold_left() == 60.0
        (caller,) = come(b, 1)
        await b.clock.advance(0)
        assert caller.got_at == 10.0
        assert b.counted("would_wait_seconds_sum", **LABELS) == 60.0


async def test_a_request_that_connects_may_leave_on_hold() -> None:
    async with bench(mode="observe") as b:
        slot, other = await b.get(b.queue()), await b.get(b.queue())
        b.send(other).report(Refused(8.0, PLATFORM))
        assert slot.may_leave(b.now)
        b.send(slot).report(Answered())


async def test_a_hold_of_one_route_keeps_nothing_back_either() -> None:
    async with bench(mode="observe") as b:
        queue = b.queue()
        refused, out = await b.get(queue), await b.get(queue)
        b.send(refused).report(Refused(60.0, FLOWS))
        assert queue.holding.state.remaining(b.now) == 60.0
        assert out.may_leave(b.now)
        b.send(out).report(Answered())
        (caller,) = come(b, 1)
        await b.clock.advance(0)
        assert caller.got_at == 10.0


async def test_a_paused_account_is_paused() -> None:
    """What an operator orders is obeyed; at its end all leave at once."""
    async with bench(mode="observe") as b:
        await b.accounts.operators.pause(b.account(), 30.0)
        callers = come(b, 5)
        assert b.predicted_wait(b.ticket()) == 30.0
        await b.until(39.9)
        assert all(caller.is_waiting for caller in callers)
        await b.until(40.0)
        assert [caller.got_at for caller in callers] == [40.0] * 5


async def test_other_accounts_are_enforced() -> None:
    async with bench(mode="observe") as b:
        callers = [b.join(b.queue(account="paris")) for _ in range(3)]
        assert await b.all_served(callers) == [10.0, 12.0, 14.0]


async def test_enforcing_by_a_reload_keeps_the_distance_from_what_was_sent() -> None:
    async with bench() as b:
        b.accounts.apply(settings("observe"))
        callers = come(b, 10)
        await b.clock.advance(0)
        assert [caller.got_at for caller in callers] == [10.0] * 10
        b.accounts.apply(settings("enforce"))
        assert await b.all_served(come(b, 3)) == [10.5, 11.0, 11.5]
        assert b.counted("early_sends_total", **LABELS) == 0


async def test_slots_that_are_out_when_enforcing_begins_keep_the_pace() -> None:
    async with bench(mode="observe") as b:
        slots = [await b.get(b.queue()) for _ in range(2)]
        b.accounts.apply(settings("enforce"))
        b.send(slots[0])
        assert not slots[1].may_leave(b.now)
        await b.clock.advance(0.5)
        assert slots[1].may_leave(b.now)
        for slot in slots:
            b.send(slot).report(Answered())


async def test_enforcing_obeys_a_hold_that_began_while_observed() -> None:
    async with bench(mode="observe") as b:
        b.send(await b.get(b.queue())).report(Refused(60.0, PLATFORM))
        b.accounts.apply(settings("enforce"))
        (caller,) = come(b, 1)
        await b.until(69.9)
        assert caller.is_waiting
        await b.until(70.0)
        assert caller.got_at == 70.0


async def test_observing_by_a_reload_sends_all_that_wait() -> None:
    async with bench() as b:
        callers = come(b, 10)
        await b.until(11.0)
        b.accounts.apply(settings("observe"))
        await b.clock.advance(0)
        assert [caller.got_at for caller in callers] == [10.0, 10.5, *[11.0] * 8]
        assert b.account().state(b.now).observed
        assert b.accounts.observed() == ["london", "other"]


async def test_a_caller_that_does_not_wait_would_be_refused_while_the_pace_lasts() -> None:
    async with bench(mode="observe") as b:
        come(b, 1)
        come(b, 1, limit=0.0)
        await b.clock.advance(0)
        assert b.counted("would_refuse_total", **LABELS) == 1
