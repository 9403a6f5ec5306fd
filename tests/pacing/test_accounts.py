"""Who may send when: the accounts's promises, one by one, on a clock that stands still."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import pytest
from prometheus_client import CollectorRegistry

from proxy.pacing.account import Account, Queue, Slot, Ticket
from proxy.pacing.accounts import Accounts
from proxy.pacing.turns import FREE
from proxy.problems import Problem
from proxy.rules.state import AccountState, QueueState
from proxy.settings import Account as AccountSettings
from proxy.settings import Identity, Pacing, Retry, Settings, Upstream
from proxy.telemetry.metrics import Metrics
from tests.kit.clock import FakeClock

UPSTREAM = Upstream(api_url="https://api.example", login_url="https://login.example")


class StallingClock(FakeClock):
    """A clock that can also run on while the event loop is busy."""

    def stall(self, seconds: float) -> None:
        """Let time pass without any call; what is overdue is called at the next advance."""
        self._now += seconds


class Caller:
    """Somebody in the queue, or through it."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.slot: Slot | None = None
        self.problem: Problem | None = None
        self.got_at = -1.0  # seconds after the start
        self.is_present = True
        self.is_prompt = False  # sends as soon as the slot comes, and is answered at once
        self.task: asyncio.Task[None] | None = None

    @property
    def is_waiting(self) -> bool:
        return self.task is not None and not self.task.done()

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()

    def take(self) -> Slot:
        """Return the slot this caller was given."""
        assert self.slot is not None, "no slot came"
        return self.slot


class Bench:
    """A accounts with its clock, its metrics, and the callers in front of it."""

    def __init__(self, settings: Settings, tasks: asyncio.TaskGroup) -> None:
        self.clock = StallingClock()
        self.registry = CollectorRegistry()
        self.jitter = 0.0
        self.accounts = Accounts(
            settings,
            clock=self.clock,
            metrics=Metrics(self.registry),
            random=lambda: self.jitter,
        )
        self._tasks = tasks

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.clock.monotonic()

    async def until(self, seconds: float) -> None:
        """Advance to that many seconds after the start."""
        await self.clock.advance(seconds - self.now)

    def account(self, name: str = "london") -> Account:
        return self.accounts.configured(name)

    def queue(
        self, route: str = "exports", *, paced: bool = True, account: str = "london"
    ) -> Queue:
        return self.account(account).queue(route, paced=paced)

    def ticket(self, *, cost: float = 1.0, is_present: Callable[[], bool] = lambda: True) -> Ticket:
        return Ticket(self.accounts.shared.next_arrival(), cost=cost, is_present=is_present)

    def join(self, queue: Queue, *, limit: float = 1000.0, cost: float = 1.0) -> Caller:
        """Put a new caller in the queue who keeps the slot until told otherwise."""
        caller = Caller(self.ticket(cost=cost, is_present=lambda: caller.is_present))
        return self.rejoin(queue, caller, limit=limit)

    def rejoin(self, queue: Queue, caller: Caller, *, limit: float = 1000.0) -> Caller:
        """Put a caller in the queue again, with the ticket it has."""
        caller.task = self._tasks.create_task(self._wait(queue, caller, limit))
        return caller

    async def _wait(self, queue: Queue, caller: Caller, limit: float) -> None:
        try:
            caller.slot = await queue.slot(caller.ticket, limit)
            caller.got_at = self.now
            if caller.is_prompt:
                self.use(caller)
        except Problem as problem:
            caller.problem = problem

    async def get(self, queue: Queue, *, limit: float = 1000.0, cost: float = 1.0) -> Slot:
        """Return a slot that is free now."""
        caller = self.join(queue, limit=limit, cost=cost)
        await self.clock.advance(0)
        return caller.take()

    def send(self, slot: Slot) -> Slot:
        slot.sent(self.clock.monotonic())
        return slot

    def use(self, caller: Caller) -> None:
        """Send and be answered, all at once."""
        self.send(caller.take()).answered()

    async def all_served(self, callers: list[Caller]) -> list[float]:
        """Let everybody send as soon as their slot comes; return the seconds of the sends."""
        for caller in callers:
            caller.is_prompt = True
            if caller.slot is not None and not caller.is_waiting and caller.slot.sent_at == -inf:
                self.use(caller)
        while any(caller.is_waiting for caller in callers):
            await self.clock.advance(1.0)
        return [caller.take().sent_at for caller in callers]

    def admit(self, queue: Queue, limit: float) -> Problem | None:
        """Return the refusal of a newcomer, or None if it may join the queue."""
        try:
            queue.admit(self.ticket(), limit)
        except Problem as problem:
            return problem
        return None

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"export_proxy_{name}", labels) or 0.0

    def waits(self, outcome: str, route: str = "exports") -> float:
        """Return how many times in the queue ended so."""
        labels = {"account": "london", "route": route, "outcome": outcome}
        return self.counted("queue_wait_seconds_count", **labels)


@asynccontextmanager
async def bench(
    pacing: Pacing | None = None,
    *,
    identity: Identity | None = None,
    retry: Retry | None = None,
    warm: bool = True,
) -> AsyncIterator[Bench]:
    """Run a accounts of two accounts, `london` and `paris`; at the end nothing may be left over.

    Warm, the first interval has passed: a queue is free at once.
    """
    settings = Settings(
        upstream=UPSTREAM,
        pacing=pacing or Pacing(),
        retry=retry or Retry(),
        identity=identity or Identity(),
        accounts=(
            AccountSettings(name="london", client_id="id-1"),
            AccountSettings(name="paris", client_id="id-2", interval=2.0),
        ),
    )
    async with asyncio.TaskGroup() as tasks:
        under_test = Bench(settings, tasks)
        if warm:
            await under_test.clock.advance(10)
        yield under_test
        await under_test.clock.advance(2000)
        for account in under_test.accounts.accounts():
            assert account.in_flight == 0
            assert [queue.depth for queue in account.queues] == [0] * len(account.queues)
        assert under_test.clock.pending == 0


# The pace


async def test_first_send_comes_no_earlier_than_one_interval_after_the_start() -> None:
    """What was sent before a restart is forgotten, so the first send keeps clear of it."""
    async with bench(warm=False) as b:
        callers = [b.join(b.queue()), b.join(b.queue(account="paris"))]
        callers.append(b.join(b.accounts.unidentified(b"t").queue("exports", paced=True)))
        assert await b.all_served(callers) == [0.5, 2.0, 0.5]


async def test_line_that_opens_later_is_free_at_once() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()


async def test_burst_leaves_one_an_interval_in_order_of_arrival() -> None:
    async with bench(warm=False) as b:
        callers = [b.join(b.queue()) for _ in range(50)]
        assert await b.all_served(callers) == [0.5 * place for place in range(1, 51)]


async def test_costly_request_keeps_the_next_one_back_for_longer() -> None:
    async with bench(warm=False) as b:
        callers = [b.join(b.queue(), cost=cost) for cost in (3.0, 1.0, 1.5, 1.0)]
        assert await b.all_served(callers) == [0.5, 2.0, 2.5, 3.25]


async def test_pace_counts_from_the_send_and_not_from_the_slot() -> None:
    """Connecting may take long; until it is over nobody else gets a slot of that queue."""
    async with bench() as b:
        connecting = await b.get(b.queue())
        second = b.join(b.queue())
        await b.until(13)
        assert second.slot is None
        b.send(connecting)
        await b.until(13.25)
        assert second.slot is None
        await b.until(15)
        assert second.got_at == 13.5
        b.use(second)
        connecting.answered()


async def test_slot_given_back_unused_goes_to_the_next_at_once() -> None:
    async with bench() as b:
        unused = await b.get(b.queue())
        second, third = b.join(b.queue()), b.join(b.queue())
        await b.until(10.125)
        unused.close()
        await b.until(12)
        assert (second.got_at, third.slot) == (10.125, None)
        b.use(second)
        await b.until(14)
        assert third.got_at == 12.5
        b.use(third)


async def test_try_that_never_left_keeps_its_distance_all_the_same() -> None:
    """A server that refuses connections is not hammered."""
    async with bench() as b:
        slot = await b.get(b.queue())
        second = b.join(b.queue())
        await b.until(10.25)
        slot.not_sent()
        await b.until(12)
        assert second.got_at == 10.75
        b.use(second)


async def test_try_that_never_left_frees_its_room_on_an_unpaced_route() -> None:
    async with bench(Pacing(max_in_flight=1)) as b:
        api = b.queue("api", paced=False)
        slot = await b.get(api)
        second = b.join(api)
        await b.until(10.25)
        slot.not_sent()
        await b.until(11)
        assert second.got_at == 10.25
        b.use(second)


async def test_stall_of_the_event_loop_is_not_made_up_for() -> None:
    """Ten seconds late, the next ones still go one an interval."""
    async with bench() as b:
        callers = [b.join(b.queue()) for _ in range(4)]
        await b.clock.advance(0)
        b.use(callers[0])
        b.clock.stall(10.0)
        assert await b.all_served(callers) == [10.0, 20.0, 20.5, 21.0]


async def test_longer_interval_governs_those_who_wait_already() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        callers = [b.join(b.queue()) for _ in range(2)]
        await b.until(10.25)
        b.accounts.shared.pacing = Pacing(interval=4.0)
        assert await b.all_served(callers) == [14.0, 18.0]


async def test_shorter_interval_governs_from_the_next_send_at_the_latest() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        callers = [b.join(b.queue()) for _ in range(3)]
        await b.until(10.25)
        b.accounts.shared.pacing = Pacing(interval=0.25)
        assert await b.all_served(callers) == [10.5, 10.75, 11.0]


async def test_interval_of_an_account_outranks_the_common_one() -> None:
    async with bench() as b:
        paris = b.queue(account="paris")
        assert await b.all_served([b.join(paris) for _ in range(3)]) == [10.0, 12.0, 14.0]


async def test_routes_of_an_account_have_their_own_pace() -> None:
    async with bench() as b:
        callers = [b.join(b.queue(route)) for route in ("exports", "jobs", "exports", "jobs")]
        assert await b.all_served(callers) == [10.0, 10.0, 10.5, 10.5]


async def test_unpaced_route_waits_for_nothing() -> None:
    async with bench(warm=False) as b:
        api = b.queue("api", paced=False)
        assert await b.all_served([b.join(api) for _ in range(5)]) == [0.0] * 5


async def test_idle_account_is_not_delayed_by_two_thousand_who_wait_elsewhere() -> None:
    async with bench() as b:
        queues = [
            b.accounts.unidentified(b"%d" % caller).queue("exports", paced=True)
            for caller in range(100)
        ]
        crowd = [b.join(queue) for queue in queues for _ in range(20)]
        await b.clock.advance(0)
        for caller in crowd[::20]:
            b.use(caller)
        await b.until(10.125)
        alone = b.join(b.queue())
        await b.clock.advance(0)
        assert alone.got_at == 10.125
        b.use(alone)
        served = await b.all_served(crowd)
        assert served == [10 + 0.5 * place for _ in range(100) for place in range(20)]


async def test_send_before_its_time_is_counted() -> None:
    """The proxy checks itself; by its own doing the count stays 0."""
    async with bench() as b:
        series = {"account": "london", "route": "exports"}
        for _ in range(2):
            b.send(await b.get(b.queue())).answered()
            await b.clock.advance(0.5)
        assert b.registry.get_sample_value("export_proxy_early_sends_total", series) == 0.0
        slot = await b.get(b.queue())
        slot.sent(b.clock.monotonic() - 0.25)
        slot.answered()
        assert b.counted("early_sends_total", **series) == 1.0


async def test_lateness_is_the_time_from_the_due_slot_to_the_send() -> None:
    """A caller who came later than the slot was due is late from then on only."""
    async with bench() as b:
        slot = await b.get(b.queue())
        second = b.join(b.queue())
        await b.until(10.25)
        b.send(slot).answered()
        await b.until(10.75)
        b.clock.stall(0.125)
        b.use(second)
        assert b.counted("send_lateness_seconds_sum", route="exports") == 0.375
        assert b.counted("send_lateness_seconds_count", route="exports") == 2.0


async def test_send_is_noted_once_however_often_it_is_reported() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        second = b.join(b.queue())
        await b.until(10.25)
        b.send(slot).answered()
        await b.until(12)
        assert second.got_at == 10.5
        b.use(second)
        assert b.counted("send_lateness_seconds_count", route="exports") == 2.0


# What happens while a slot's owner connects


def may_leave(b: Bench, slot: Slot) -> bool:
    return slot.may_leave(b.now)


async def test_slot_may_be_used_as_long_as_nothing_has_changed() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        await b.until(15)
        assert may_leave(b, slot)
        b.send(slot).answered()


async def test_hold_that_begins_while_somebody_connects_is_for_them_too() -> None:
    """They come back, in the order in which they came; one goes first when the hold ends."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        first = b.send(await b.get(api))
        others = [b.join(api), b.join(api), b.join(b.queue())]
        await b.clock.advance(0)
        first.refused(4.0)
        for other in others:
            assert not may_leave(b, other.take())
        for other in reversed(others):
            other.take().close()
            b.rejoin(b.queue() if other is others[2] else api, other)
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
        first.refused(2.0)
        probe = b.join(api)
        await b.until(12)
        assert may_leave(b, probe.take())
        echo.refused(4.0)
        assert not may_leave(b, probe.take())
        await b.until(16)
        assert may_leave(b, probe.take())
        b.use(probe)


async def test_pace_that_grows_while_somebody_connects_is_obeyed() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        await b.until(11)
        slot = await b.get(b.queue())
        b.account().own_interval = 3.0
        assert not may_leave(b, slot)
        await b.until(13)
        assert may_leave(b, slot)
        slot.close()


async def test_turn_that_runs_out_while_somebody_connects_is_not_used() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        b.queue().lease_lost()
        assert not may_leave(b, slot)
        b.queue().lease_granted(FREE)
        slot.close()


async def test_caller_who_leaves_or_is_late_while_connecting_is_not_sent() -> None:
    async with bench() as b:
        gone, late = b.join(b.queue()), b.join(b.queue("api", paced=False), limit=1.0)
        await b.until(11)
        assert may_leave(b, gone.take())
        assert may_leave(b, late.take())
        gone.is_present = False
        await b.until(11.5)
        assert not may_leave(b, gone.take())
        assert not may_leave(b, late.take())
        gone.take().close()
        late.take().close()


async def test_caller_who_will_not_wait_may_still_connect() -> None:
    async with bench() as b:
        slot = await b.get(b.queue(), limit=0.0)
        await b.until(11)
        assert may_leave(b, slot)
        slot.close()


async def test_who_comes_back_too_late_gets_no_slot_though_one_is_free() -> None:
    async with bench() as b:
        late = b.join(b.queue(), limit=-0.5)
        await b.clock.advance(0)
        assert late.slot is None
        assert late.problem is not None
        assert (late.problem.name, late.problem.retry_after) == ("wait-expired", 1)
        assert b.waits("expired") == 1


# Room in flight


async def test_no_more_in_flight_than_there_is_room_for() -> None:
    """Sent and not yet answered counts, on all routes together; room goes to who came first."""
    async with bench(Pacing(max_in_flight=2)) as b:
        api, exports = b.queue("api", paced=False), b.queue()
        first, second = b.send(await b.get(api)), b.send(await b.get(exports))
        third, fourth, fifth = b.join(exports), b.join(api), b.join(exports)
        await b.until(20)
        assert (third.slot, fourth.slot, b.account().in_flight) == (None, None, 2)
        second.answered()
        await b.until(21)
        assert (third.got_at, fourth.slot) == (20.0, None)
        first.answered()
        await b.until(22)
        assert (fourth.got_at, fifth.slot, b.account().in_flight) == (21.0, None, 2)
        b.use(fourth)
        b.use(third)
        await b.until(30)
        b.use(fifth)


async def test_room_in_flight_is_given_back_once() -> None:
    async with bench() as b:
        slot, other = await b.get(b.queue()), await b.get(b.queue("api", paced=False))
        b.send(slot).answered()
        slot.close()
        slot.answered()
        assert b.account().in_flight == 1
        other.close()


async def test_answer_of_which_more_is_to_come_takes_room_until_it_has_come() -> None:
    """It ends a hold with its head all the same."""
    async with bench(Pacing(max_in_flight=1)) as b:
        api = b.queue("api", paced=False)
        b.send(await b.get(api)).refused(1.0)
        probe, other = b.join(api), b.join(api)
        await b.until(11)
        b.account().take_room()
        b.send(probe.take()).answered()
        await b.until(12)
        assert (b.account().hold, b.account().in_flight, other.slot) == (None, 1, None)
        b.account().make_room()
        await b.until(13)
        assert other.got_at == 12.0
        b.use(other)


async def test_room_is_given_to_the_line_that_may_use_it() -> None:
    """Who came first but must keep its distance does not stop another route."""
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        (await b.get(b.queue("api", paced=False))).answered()
        await b.until(11)
        b.use(waiting)


# Order, and who leaves


async def test_newcomer_does_not_overtake_those_whose_slot_is_overdue() -> None:
    """The loop stalled: the newcomer's task runs before the timer that would serve the queue."""
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        waiting = b.join(b.queue())
        await b.clock.advance(0)
        b.clock.stall(5.0)
        newcomer = b.join(b.queue())
        assert await b.all_served([waiting, newcomer]) == [15.0, 15.5]


async def test_request_that_comes_back_goes_before_those_who_came_later() -> None:
    async with bench() as b:
        returning = b.join(b.queue())
        await b.clock.advance(0)
        later = [b.join(b.queue()) for _ in range(2)]
        await b.clock.advance(0)
        b.send(returning.take()).refused(0.0)
        b.rejoin(b.queue(), returning)
        newest = b.join(b.queue())
        served = await b.all_served([returning, *later, newest])
        assert served == [10.5, 11.0, 11.5, 12.0]


@pytest.mark.parametrize(
    "order", ["leaves long before", "leaves just before", "leaves just after", "leaves after"]
)
async def test_whoever_leaves_costs_the_others_nothing(order: str) -> None:
    """Just before and just after: in the very step of the event loop that frees the slot."""
    async with bench() as b:
        slot = await b.get(b.queue())
        leaver, next_one = b.join(b.queue()), b.join(b.queue())
        await b.until(10.25)
        if order in ("leaves long before", "leaves just before"):
            leaver.cancel()
        if order == "leaves long before":
            await b.clock.advance(0)
        slot.close()
        if order == "leaves after":
            await b.clock.advance(0)
            leaver.take().close()
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
        b.send(slot).answered()
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
        assert b.queue().predicted_wait(b.ticket()) == 501.0
        for caller in crowd:
            caller.cancel()
        await b.clock.advance(0)
        assert b.queue().predicted_wait(b.ticket()) == 1.0
        references = [weakref.ref(caller) for caller in crowd]
        del crowd, caller
        await b.until(610)
        newcomer = b.join(b.queue())
        await b.clock.advance(0)
        gc.collect()
        assert [reference for reference in references if reference() is not None] == []
        b.send(connecting).answered()
        assert await b.all_served([stayed, newcomer]) == [610.5, 611.0]


async def test_last_who_leaves_is_forgotten_without_a_next_one() -> None:
    """A caller's request and its body are not kept in memory for whoever comes, if ever."""
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
        connecting.close()


# The prediction, and who is admitted


async def test_predicted_wait_counts_the_one_who_is_just_leaving() -> None:
    async with bench() as b:
        slot = await b.get(b.queue(), cost=2.0)
        assert b.queue().predicted_wait(b.ticket()) == 1.0
        b.send(slot).answered()
        assert b.queue().predicted_wait(b.ticket()) == 1.0


async def test_predicted_wait_of_a_returning_request_counts_only_who_came_before() -> None:
    async with bench() as b:
        older = b.join(b.queue())
        returning = b.join(b.queue())
        await b.clock.advance(0)
        younger = [b.join(b.queue(), cost=9.0) for _ in range(3)]
        b.use(older)
        await b.until(10.5)
        b.send(returning.take()).refused(8.0)
        b.rejoin(b.queue(), older)
        await b.clock.advance(0)
        assert b.queue().predicted_wait(returning.ticket) == 8.0 + 0.5
        assert b.queue().predicted_wait(b.ticket()) == 8.0 + 0.5 + 13.5
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
        b.send(returning.take()).refused(4.0)
        assert b.queue().predicted_wait(returning.ticket) == 4.0
        await b.all_served(crowd)


async def test_admitted_at_exactly_the_limit_and_served_in_time() -> None:
    """The slot that is due with the last moment of the wait still counts."""
    async with bench() as b:
        queue = b.queue()
        b.send(await b.get(queue)).answered()
        callers = []
        for place in range(1, 11):
            assert b.admit(queue, 5.0) is None
            callers.append(b.join(queue, limit=5.0))
            await b.clock.advance(0)
            assert queue.depth == place
        refused = b.admit(queue, 5.0)
        assert refused is not None
        assert await b.all_served(callers) == [10.5 + 0.5 * place for place in range(10)]


@pytest.mark.parametrize(
    ("limit", "jitter", "retry_after"),
    [(10.4, 0.0, 1), (10.4, 0.999, 2), (5.5, 0.0, 5), (0.5, 0.0, 10), (0.5, 0.999, 12)],
)
async def test_refusal_says_how_long_the_wait_would_be_and_when_to_return(
    limit: float, jitter: float, retry_after: int
) -> None:
    """Whole seconds, after which the wait is within the limit."""
    async with bench() as b:
        b.jitter = jitter
        b.send(await b.get(b.queue(), cost=2.0)).answered()
        callers = [b.join(b.queue()) for _ in range(19)]
        await b.clock.advance(0)
        problem = b.admit(b.queue(), limit)
        assert problem is not None
        assert (problem.name, problem.status) == ("queue-full", 429)
        assert problem.fields == {"predicted_wait": 10.5}
        assert problem.retry_after == retry_after
        assert b.waits("refused") == 1
        await b.clock.advance(retry_after)
        await b.all_served(callers)


async def test_line_holds_no_more_than_its_length() -> None:
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
        slot.close()
        await b.all_served([callers[0], callers[2]])


async def test_caller_who_will_not_wait_is_admitted_to_a_free_slot() -> None:
    async with bench() as b:
        assert b.admit(b.queue(), 0.0) is None
        b.send(await b.get(b.queue(), limit=0.0)).answered()
        await b.clock.advance(0.5)
        assert b.admit(b.queue(), 0.0) is None
        b.send(await b.get(b.queue(), limit=0.0)).answered()


async def test_caller_who_will_not_wait_is_refused_when_no_slot_is_free() -> None:
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
        other.answered()
        assert refused() == (None, None)
        slot.refused(2.0)
        assert refused() == ("queue-full", "queue-full")
        await b.clock.advance(2)
        assert refused() == (None, None)
        probe = await b.get(api)
        assert refused() == ("queue-full", "queue-full")
        waiting = b.join(api)
        await b.clock.advance(0)
        probe.answered()
        await b.clock.advance(0)
        waiting.take().answered()
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
        slot.close()
        assert b.queue().predicted_wait(b.ticket()) == 0.0
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
        slot.close()


async def test_expired_wait_says_when_the_hold_that_grew_lets_one_in() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        caller = b.join(b.queue(), limit=3.0)
        await b.clock.advance(0)
        slot.refused(60.0)
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
        slot.close()
        await b.until(13)
        assert next_one.got_at == 12.0
        b.use(next_one)


async def test_deadline_that_passes_in_a_stall_of_the_loop_takes_no_slot() -> None:
    """The slot fell due first, but when it is offered the wait is over."""
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        late, next_one = b.join(b.queue(), limit=1.0), b.join(b.queue())
        await b.clock.advance(0)
        b.clock.stall(5.0)
        await b.clock.advance(0)
        assert late.problem is not None
        assert late.problem.name == "wait-expired"
        assert next_one.got_at == 15.0
        b.use(next_one)


async def test_drain_refuses_those_who_wait_and_those_who_come() -> None:
    """What has its slot already is sent; nothing else is."""
    async with bench() as b:
        slot = await b.get(b.queue())
        waiting = [b.join(b.queue()), b.join(b.queue("jobs")), b.join(b.queue(account="paris"))]
        await b.clock.advance(0)
        b.use(waiting[1])
        b.use(waiting[2])
        b.accounts.drain()
        refused = b.admit(b.queue("api", paced=False), 10.0)
        b.send(slot).refused(0.0)
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
        b.accounts.drain()
        b.accounts.drain()
        caller.cancel()
        slot.close()
        await b.until(20)
        assert (b.waits("drained"), b.waits("abandoned"), b.waits("expired")) == (1, 0, 0)


async def test_gone_caller_that_was_not_told_yet_is_not_drained() -> None:
    async with bench() as b:
        slot = await b.get(b.queue())
        caller = b.join(b.queue())
        await b.clock.advance(0)
        caller.cancel()
        b.accounts.drain()
        slot.close()
        await b.clock.advance(0)
        assert (b.waits("drained"), b.waits("abandoned")) == (0, 1)


# The hold


async def test_hold_covers_every_line_of_the_account_and_no_other_account() -> None:
    """Unpaced routes too."""
    async with bench() as b:
        b.send(await b.get(b.queue())).refused(4.0)
        held = [b.join(b.queue("api", paced=False)), b.join(b.queue("jobs")), b.join(b.queue())]
        other = b.join(b.queue(account="paris"))
        await b.until(13.99)
        assert [caller.slot for caller in held] == [None, None, None]
        assert other.got_at == 10.0
        b.use(other)
        assert b.account().hold_remaining() == pytest.approx(0.01)
        assert await b.all_served(held) == [14.0, 14.0, 14.0]


@pytest.mark.parametrize("second", [1.0, 0.0, None])
async def test_longer_hold_is_never_shortened(second: float | None) -> None:
    async with bench() as b:
        first, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        first.refused(8.0)
        echo.refused(second)
        caller = b.join(b.queue())
        await b.until(30)
        assert caller.got_at == 18.0
        b.use(caller)


async def test_one_probe_goes_when_the_hold_ends_and_the_others_wait_for_its_answer() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).refused(4.0)
        probe, second, third = (
            b.join(b.queue("api", paced=False)),
            b.join(b.queue()),
            b.join(b.queue("api", paced=False)),
        )
        await b.until(16)
        assert (probe.got_at, second.slot, third.slot) == (14.0, None, None)
        b.send(probe.take())
        await b.until(17)
        assert (second.slot, third.slot) == (None, None)
        probe.take().answered()
        await b.until(18)
        assert (second.got_at, third.got_at) == (17.0, 17.0)
        b.use(second)
        b.use(third)


async def test_newcomer_does_not_overtake_the_probe() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).refused(4.0)
        await b.until(20)
        probe = await b.get(b.queue())
        newcomer = b.join(b.queue("api", paced=False))
        await b.until(21)
        assert newcomer.slot is None
        b.send(probe).answered()
        await b.clock.advance(0)
        b.use(newcomer)


async def test_refused_probe_prolongs_the_hold() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).refused(4.0)
        first, second = b.join(b.queue()), b.join(b.queue())
        await b.until(14.25)
        b.send(first.take()).refused(8.0)
        await b.until(30)
        assert second.got_at == 22.25
        b.use(second)


@pytest.mark.parametrize("loss", [Slot.close, Slot.not_sent])
async def test_probe_that_is_lost_makes_room_for_the_next(loss: Callable[[Slot], None]) -> None:
    """The next one is a probe again: no answer has opened the account."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        b.send(await b.get(b.queue())).refused(4.0)
        lost, second, third = b.join(api), b.join(api), b.join(api)
        await b.until(14.25)
        loss(lost.take())
        await b.until(15)
        assert (second.got_at, third.slot) == (14.25, None)
        b.use(second)
        await b.clock.advance(0)
        assert third.got_at == 15.0
        b.use(third)


async def test_probe_that_is_cancelled_as_it_gets_its_slot_makes_room_for_the_next() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        b.send(await b.get(b.queue())).refused(4.0)
        await b.until(14)
        probe = await b.get(api)
        cancelled, third = b.join(api), b.join(api)
        await b.clock.advance(0)
        probe.close()
        cancelled.cancel()
        await b.clock.advance(0)
        assert third.got_at == 14.0
        b.use(third)


async def test_echo_does_not_end_a_hold() -> None:
    """It answers a request that left before the silence was asked for."""
    async with bench() as b:
        refused, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        refused.refused(4.0)
        caller, second = b.join(b.queue("api", paced=False)), b.join(b.queue("api", paced=False))
        await b.until(12)
        echo.answered()
        await b.until(15)
        assert (caller.got_at, second.slot) == (14.0, None)
        b.use(caller)
        await b.clock.advance(0)
        b.use(second)


async def test_echo_that_comes_beside_the_probe_does_not_end_the_hold() -> None:
    async with bench() as b:
        refused, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        refused.refused(4.0)
        probe, second = b.join(b.queue("api", paced=False)), b.join(b.queue("api", paced=False))
        await b.until(14)
        echo.answered()
        await b.until(15)
        assert second.slot is None
        b.use(probe)
        await b.clock.advance(0)
        b.use(second)


async def test_echo_that_comes_after_the_silence_does_not_spare_the_probe() -> None:
    """Nobody came when the hold was over, but an echo did: still one goes first."""
    async with bench() as b:
        refused, echo = b.send(await b.get(b.queue())), b.send(await b.get(b.queue("jobs")))
        refused.refused(4.0)
        await b.until(20)
        echo.answered()
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
        refused.refused(4.0)
        probe, second = b.join(b.queue("api", paced=False)), b.join(b.queue("api", paced=False))
        await b.until(14)
        echo.refused(6.0)
        b.use(probe)
        await b.until(30)
        assert second.got_at == 20.0
        b.use(second)


async def test_hold_grows_where_refusals_in_a_row_name_no_time() -> None:
    """0.5, 1, 2 and 4 seconds, and up to 0.5 more; after a success it begins anew."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        for least in (0.5, 1.0, 2.0, 4.0):
            (await b.get(api)).refused(None)
            assert least <= b.account().hold_remaining() <= least + 0.5
            await b.clock.advance(least + 0.5)
        (await b.get(api)).answered()
        (await b.get(api)).refused(None)
        assert 0.5 <= b.account().hold_remaining() <= 1.0


async def test_hold_does_not_grow_where_the_time_is_named() -> None:
    async with bench() as b:
        api = b.queue("api", paced=False)
        for _ in range(5):
            (await b.get(api)).refused(2.0)
            assert b.account().hold_remaining() == 2.0
            await b.clock.advance(2.0)
        (await b.get(api)).refused(None)
        assert 0.5 <= b.account().hold_remaining() <= 1.0


async def test_echoes_are_no_further_failures() -> None:
    """Eight requests refused together are one refusal: the silence after them is the first step."""
    async with bench() as b:
        api = b.queue("api", paced=False)
        for slot in [await b.get(api) for _ in range(8)]:
            slot.refused(None)
        assert 0.5 <= b.account().hold_remaining() <= 1.0
        await b.clock.advance(1.0)
        (await b.get(api)).refused(None)
        assert 1.0 <= b.account().hold_remaining() <= 1.5


async def test_retry_after_nought_asks_for_the_normal_pace() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue(), cost=2.0))
        await b.until(10.25)
        slot.refused(0.0)
        assert b.account().hold_remaining() == 0.75
        callers = [b.join(b.queue()), b.join(b.queue())]
        assert await b.all_served(callers) == [11.0, 11.5]


async def test_retry_after_nought_past_the_normal_pace_asks_for_nothing() -> None:
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        await b.until(12)
        slot.refused(0.0)
        assert b.account().hold_remaining() == 0.0
        b.send(await b.get(b.queue())).answered()
        assert b.counted("held_seconds_total", account="london") == 0.0


async def test_time_on_hold_is_the_silence_and_not_the_time_nobody_came() -> None:
    """An hour without traffic after the hold, and before its probe, is no hold."""
    async with bench() as b:
        assert b.account().held_seconds() == 0.0
        (await b.get(b.queue("api", paced=False))).refused(4.0)
        await b.clock.advance(1.0)
        assert b.account().held_seconds() == 1.0
        await b.clock.advance(3600)
        assert b.account().held_seconds() == 4.0
        (await b.get(b.queue("api", paced=False))).refused(2.0)
        await b.clock.advance(3600)
        (await b.get(b.queue("api", paced=False))).answered()
        assert b.account().held_seconds() == 6.0
        assert b.counted("held_seconds_total", account="london") == 6.0
        assert b.counted("holds_total", account="london") == 1.0


# Sending again


async def test_account_may_repeat_three_requests_a_minute_and_a_tenth_of_its_sends() -> None:
    async with bench() as b:
        assert [b.account().spend_retry() for _ in range(4)] == [True, True, True, False]
        assert b.account("paris").spend_retry()
        await b.clock.advance(62)
        for _ in range(60):
            b.send(await b.get(b.queue("api", paced=False))).answered()
        assert sum(b.account().spend_retry() for _ in range(100)) == 6


# Accounts nobody configured


async def test_same_caller_has_the_same_account() -> None:
    async with bench() as b:
        token, client = b.accounts.unidentified(b"t"), b.accounts.learned("c")
        assert b.accounts.unidentified(b"t") is token
        assert b.accounts.learned("c") is client
        assert {token, client, *b.accounts.accounts()} == {
            token,
            client,
            b.account(),
            b.account("paris"),
        }


@pytest.mark.parametrize("table", ["unidentified", "learned"])
async def test_ten_thousand_strangers_are_forgotten_when_they_are_idle(table: str) -> None:
    """The table stays within its bound, and nobody is refused."""
    identity = Identity(max_unidentified=100, max_learned=100)
    async with bench(identity=identity) as b:
        for number in range(10_000):
            if table == "learned":
                account = b.accounts.learned(f"client {number}")
            else:
                account = b.accounts.unidentified(b"token %d" % number)
            slot = await b.get(account.queue("exports", paced=True))
            b.send(slot).answered()
            await b.clock.advance(0.0625)
        del account, slot
        gc.collect()
        assert len(list(b.accounts.accounts())) <= 2 + 100


async def test_live_account_is_not_forgotten() -> None:
    """Alive: somebody waits, something is in flight, the pace or the hold is not past."""
    async with bench(Pacing(interval=64.0), identity=Identity(max_unidentified=5)) as b:
        await b.until(64)
        accounts = b.accounts

        def queue(token: bytes, route: str = "exports") -> Queue:
            return accounts.unidentified(token).queue(route, paced=route == "exports")

        waiting = b.join(queue(b"waiting"))
        in_flight = await b.get(queue(b"in flight", "api"))
        b.send(await b.get(queue(b"paced"))).answered()
        b.send(await b.get(queue(b"on hold", "api"))).refused(32.0)
        (await b.get(queue(b"idle", "api"))).answered()
        await b.clock.advance(0)
        b.send(waiting.take())
        also_waiting = b.join(queue(b"waiting"))
        names = [b"waiting", b"in flight", b"paced", b"on hold"]
        alive = [id(accounts.unidentified(name)) for name in names]
        await b.clock.advance(16)
        gc.collect()
        newcomer = await b.get(queue(b"newcomer", "api"))
        with pytest.raises(Problem):
            queue(b"one too many", "api")
        assert [id(accounts.unidentified(name)) for name in names] == alive
        waiting.take().answered()
        in_flight.answered()
        newcomer.answered()
        await b.until(200)
        b.use(also_waiting)


async def test_strangers_beyond_the_bound_are_refused_while_all_are_alive() -> None:
    async with bench(identity=Identity(max_unidentified=3)) as b:
        slots = [
            await b.get(b.accounts.unidentified(token).queue("api", paced=False))
            for token in (b"1", b"2", b"3")
        ]
        with pytest.raises(Problem) as refused:
            b.accounts.unidentified(b"4")
        assert (refused.value.name, refused.value.status) == ("queue-full", 429)
        assert refused.value.retry_after in (1, 2)
        b.accounts.unidentified(b"2")
        b.accounts.learned("4")
        slots.pop().answered()
        await b.clock.advance(0.125)
        b.accounts.unidentified(b"4")
        for slot in slots:
            slot.answered()


async def test_account_a_request_still_holds_is_found_again() -> None:
    """One caller never has two queues on one route, for these would have two paces.

    The account is idle, and dropped, while the body is still coming or between two tries.
    """
    async with bench(identity=Identity(max_unidentified=2)) as b:
        held = b.accounts.unidentified(b"t")
        for number in range(10):
            b.accounts.unidentified(b"%d" % number)
            await b.clock.advance(1)
        b.send(await b.get(held.queue("exports", paced=True))).answered()
        second = b.join(b.accounts.unidentified(b"t").queue("exports", paced=True))
        await b.clock.advance(0)
        assert second.slot is None
        assert await b.all_served([second]) == [20.5]


async def test_dropped_account_that_a_request_still_holds_is_drained_too() -> None:
    async with bench(identity=Identity(max_unidentified=1)) as b:
        held = b.accounts.unidentified(b"t")
        b.accounts.unidentified(b"other")
        slot = await b.get(held.queue("exports", paced=True))
        waiting = b.join(held.queue("exports", paced=True))
        await b.clock.advance(0)
        b.accounts.drain()
        slot.close()
        await b.clock.advance(0)
        assert waiting.problem is not None
        assert waiting.problem.name == "draining"


# What can be seen


async def test_state_shows_who_waits_how_long_and_why() -> None:
    """Strangers are shown as one."""
    async with bench() as b:
        slot = b.send(await b.get(b.queue()))
        first, second = b.join(b.queue()), b.join(b.queue())
        tokens = [
            b.join(b.accounts.unidentified(token).queue("exports", paced=True))
            for token in (b"1", b"1", b"2", b"2")
        ]
        await b.until(10.25)
        slot.refused(4.0)
        await b.until(11)
        assert b.accounts.states() == (
            AccountState(
                name="london",
                routes=(
                    QueueState(
                        name="exports", queue_depth=2, oldest_seconds=1.0, interval=0.5, sent=1
                    ),
                ),
                in_flight=0,
                hold_remaining_seconds=3.25,
            ),
            AccountState(name="paris", routes=(), in_flight=0, hold_remaining_seconds=0.0),
            AccountState(
                name="other",
                routes=(
                    QueueState(name="exports", queue_depth=2, oldest_seconds=1.0, interval=0.5),
                ),
                in_flight=2,
                hold_remaining_seconds=0.0,
            ),
        )
        assert repr(b.account()) == "<Account london: 2 waiting, 0 in flight>"
        assert repr(b.queue()) == "<Queue london/exports: 2 waiting>"
        await b.all_served([first, second, *tokens])
        assert b.accounts.states()[0].routes[0].oldest_seconds == 0.0


async def test_who_is_sent_at_once_has_waited_no_time() -> None:
    """And counts: without those, all that were sent would seem to have waited longer."""
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        labels = {"account": "london", "route": "exports", "outcome": "sent"}
        assert b.counted("queue_wait_seconds_count", **labels) == 1
        assert b.counted("queue_wait_seconds_sum", **labels) == 0


async def test_time_in_line_is_measured_by_how_it_ended() -> None:
    async with bench() as b:
        b.send(await b.get(b.queue())).answered()
        callers = [b.join(b.queue()), b.join(b.queue())]
        await b.all_served(callers)
        labels = {"account": "london", "route": "exports", "outcome": "sent"}
        assert b.counted("queue_wait_seconds_sum", **labels) == 1.5
