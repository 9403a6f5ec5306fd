"""Whatever callers, the network, the API and the event loop do, the accounts keeps its promises.

Hypothesis writes the scripts: who comes when, how long connecting and answering take, what becomes
of each try, who leaves, when the loop stalls, when the interval changes. Times lie on a grid, so
that things often happen at one moment. The judge beside the accounts knows the promises only.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import assert_never

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.accounts import Accounts
from proxy.pacing.allowance import Allowance
from proxy.pacing.prediction import predicted_wait
from proxy.pacing.slot import Answered as AnsweredReport
from proxy.pacing.slot import NotSent, Refusing, Sent, Slot, Ticket
from proxy.pacing.slot import Refused as RefusedReport
from proxy.pacing.slot import Unused as UnusedReport
from proxy.pacing.waiting import Waiting
from proxy.problems import Problem
from proxy.rules.limits import NO_LIMIT, Limit
from proxy.rules.quota import Quota
from proxy.settings import Account, Pacing, Retry, Route, Settings, Upstream
from proxy.settings.sections import DEFAULT_ROUTES
from proxy.telemetry.metrics import Metrics
from tests.kit.clock import FakeClock
from tests.kit.pacing import StallingClock, wait_of

INTERVAL = 0.5
MAX_IN_FLIGHT = 2
LONG = 10_000.0  # a limit nobody reaches
JOBS, JOBS_INTERVAL = "jobs", 0.75  # a route with an interval of its own
LINES = (("london", "exports"), ("london", JOBS), ("london", "api"), ("paris", "exports"))
UNPACED = "api"
CLAMP = 4.0
ROUNDING = 1e-9


# What a script is made of


@dataclass(frozen=True, slots=True)
class Answered:
    after: float
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A 429; it comes back."""

    after: float
    named: float | None
    limit: Limit = NO_LIMIT
    reading: float = 0.0  # until the body is there


@dataclass(frozen=True, slots=True)
class Lost:
    """Sent, and no answer ever comes."""

    after: float


@dataclass(frozen=True, slots=True)
class Unsent:
    """Never left; it comes back."""

    pause: float


@dataclass(frozen=True, slots=True)
class Unused:
    """Gives the slot back."""


Fate = Answered | Refused | Lost | Unsent | Unused


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrive:
    queue: int
    cost: float
    limit: float
    connect: float
    fates: Sequence[Fate]  # of one try after the other; what comes after the last is answered
    leaves_when_offered: bool  # in the very step of the event loop


@dataclass(frozen=True, slots=True)
class Leave:
    """The server notices that a caller is gone, and cancels what it waits for."""

    caller: int


@dataclass(frozen=True, slots=True)
class Vanish:
    """A caller is gone, and nobody has noticed."""

    caller: int


@dataclass(frozen=True, slots=True)
class Pass:
    seconds: float


@dataclass(frozen=True, slots=True)
class Stall:
    seconds: float


@dataclass(frozen=True, slots=True)
class SetInterval:
    seconds: float


@dataclass(frozen=True, slots=True)
class Reload:
    """The configuration is read again, and says what it said."""


Step = Arrive | Leave | Vanish | Pass | Stall | SetInterval | Reload


# Who plays it, and who judges


@dataclass(slots=True, kw_only=True, eq=False)
class Caller:
    script: Arrive
    ticket: Ticket
    queue: AccountQueue
    is_present: bool = True
    is_cancelled: bool = False
    is_waiting: bool = False
    has_slot: bool = False
    deadline: float = inf
    interval: float = inf  # in force when it was offered its slot
    grants: int = 0
    joins: int = 0
    end: str = ""
    ended_at: float = -inf

    def may_have_a_slot(self, now: float) -> bool:
        waits = self.is_waiting and not self.has_slot  # it may not know yet that it has one
        return waits and self.is_present and not self.is_cancelled and now <= self.deadline

    def goes_before(self, other: "Caller", now: float) -> bool:
        """True if their queue's next slot is this one's; at its deadline the wait may end."""
        is_earlier = self.queue is other.queue and self.ticket.number < other.ticket.number
        return is_earlier and self.may_have_a_slot(now) and now < self.deadline


@dataclass(slots=True)
class ModelHold:
    """What an account was asked for: nothing before `until`, then one at a time.

    It is over when one of these, the probes, is accepted. Two seconds after the first of them has
    its slot, a second one goes.
    """

    is_on: bool = False
    until: float = -inf
    probes: set[Caller] = field(default_factory=set)
    probing_since: float = -inf

    def may_probe(self, now: float) -> bool:
        """True if there is no probe, or one that is slow."""
        if len(self.probes) == 1:
            return now >= self.probing_since + 2.0
        return not self.probes


class World:
    """The accounts, their callers, and the judge."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.clock = StallingClock(start=1000.0)
        self.registry = CollectorRegistry()
        self.settings = Settings(
            upstream=Upstream(api_url="https://api.example", login_url="https://login.example"),
            accounts=(
                Account(name="london", client_id="1", organization="ours"),
                Account(name="paris", client_id="2", organization="ours"),
            ),
            routes=(
                *DEFAULT_ROUTES,
                Route(name=JOBS, paths=("/jobs",), paced=True, interval=JOBS_INTERVAL),
            ),
            pacing=Pacing(interval=INTERVAL, max_in_flight=MAX_IN_FLIGHT),
            retry=Retry(max_retry_after=CLAMP),
        )
        self.accounts = Accounts(
            self.settings,
            clock=self.clock,
            metrics=Metrics(self.registry),
            random=lambda: 0.0,
        )
        self.queues = [
            self.accounts.configured(name).queue(route, paced=route != UNPACED)
            for name, route in LINES
        ]
        self.callers: list[Caller] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.broken: list[str] = []
        # Of each queue: when a try left or failed, its cost, the interval it had to keep before it.
        self.tries: dict[AccountQueue, list[tuple[float, float, float]]] = {
            queue: [(self.now, 1.0, 0.0)] for queue in self.queues
        }
        self.out: dict[AccountQueue, set[Caller]] = {queue: set() for queue in self.queues}
        self.in_flight = {queue.allowance: 0 for queue in self.queues}
        self.holds: dict[Allowance | AccountQueue, ModelHold] = {}
        for queue in self.queues:
            self.holds.setdefault(queue.allowance, ModelHold())
            self.holds[queue] = ModelHold()
        self.reading = {queue.allowance: 0 for queue in self.queues}  # refusals, of each account
        # Of each account: how many may be in flight by its quota, and until when.
        self.quotas = {queue.allowance: (MAX_IN_FLIGHT, -inf) for queue in self.queues}
        self._group = tasks

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def demand(self, claim: str, holds: bool) -> None:  # noqa: FBT001 - the claim's truth
        if not holds:
            self.broken.append(f"{self.now}: {claim}")

    async def play(self, steps: Iterable[tuple[Step, bool]]) -> None:  # noqa: C901 -- a case a step
        """Play the steps; between two, tasks run only where the script says so."""
        for step, settles in steps:
            match step:
                case Arrive():
                    self.arrive(step)
                case Leave(number) if self.callers:
                    self.leave(number % len(self.callers))
                case Vanish(number) if self.callers:
                    self.callers[number % len(self.callers)].is_present = False
                case Leave() | Vanish():
                    pass
                case Pass(seconds):
                    await self.clock.advance(seconds)
                case Stall(seconds):
                    self.clock.stall(seconds)
                case SetInterval(seconds):
                    pacing = Pacing(interval=seconds, max_in_flight=MAX_IN_FLIGHT)
                    self.accounts.context.pacing = pacing
                case Reload():
                    self.reload()
                case _:
                    assert_never(step)
            if settles:
                await self.clock.advance(0)

    def reload(self) -> None:
        pacing = self.accounts.context.pacing
        self.accounts.apply(self.settings.model_copy(update={"pacing": pacing}))

    def arrive(self, script: Arrive) -> None:
        queue = self.queues[script.queue]
        ticket = Ticket(
            self.accounts.context.next_arrival(),
            cost=script.cost,
            is_present=lambda: self.judge(caller),
        )
        caller = Caller(script=script, ticket=ticket, queue=queue)
        self.callers.append(caller)
        self.tasks.append(self._group.create_task(self.live(caller)))

    def leave(self, number: int) -> None:
        caller = self.callers[number]
        caller.is_cancelled = True
        if caller.is_waiting:  # and if it has a slot, does not know yet
            self.gives_back(caller)
        self.tasks[number].cancel()

    def judge(self, caller: Caller) -> bool:
        """Judge the offer of a slot, at the moment it is made."""
        if not caller.is_present:
            return False
        queue, account = caller.queue, caller.queue.allowance
        holds = self.holds_of(caller)
        self.demand("a slot only for who may have one", caller.may_have_a_slot(self.now))
        self.demand("one slot a place in the queue", caller.grants < caller.joins)
        self.demand(
            "first come, first served",
            not any(other.goes_before(caller, self.now) for other in self.callers),
        )
        self.demand("room in flight", self.in_flight[account] < MAX_IN_FLIGHT)
        self.demand("one slot out on a paced queue", not (queue.paced and self.out[queue]))
        room, until = self.quotas[account]
        self.demand("room in the quota", self.now >= until or self.in_flight[account] < room)
        self.demand("a hold while a refusal is read", not self.reading[account])
        for hold in holds:
            self.demand("a hold when asked for", self.now >= hold.until)
            self.demand("one probe, or two", not hold.is_on or hold.may_probe(self.now))
        caller.grants += 1
        caller.interval = self.interval_of(caller)
        caller.has_slot = True
        self.in_flight[account] += 1
        self.out[queue].add(caller)
        for hold in holds:
            if hold.is_on:
                if not hold.probes:
                    hold.probing_since = self.now
                hold.probes.add(caller)
        if caller.script.leaves_when_offered:
            asyncio.get_running_loop().call_soon(self.leave, self.callers.index(caller))
        return True

    async def live(self, caller: Caller) -> None:
        try:
            self.accounts.waiting.admit(
                caller.queue, caller.ticket, wait_of(caller.script.limit, self.now)
            )
            for fate in (*caller.script.fates, Answered(0.0)):
                caller.joins += 1
                caller.is_waiting = True
                caller.deadline = self.now + caller.script.limit
                try:
                    slot = await self.accounts.waiting.slot(
                        caller.queue, caller.ticket, wait_of(caller.script.limit, self.now)
                    )
                finally:
                    caller.is_waiting = False
                assert slot is not None
                if not await self.attempt(caller, slot, fate):
                    break
            caller.end = "served"
        except Problem as problem:
            caller.end = problem.name
        except asyncio.CancelledError:
            caller.end = "cancelled"
            raise
        finally:
            caller.ended_at = self.now

    async def attempt(self, caller: Caller, slot: Slot, fate: Fate) -> bool:
        """Use the slot as the script says; tell whether the request comes back."""
        interval = caller.interval
        try:
            await self.pause(caller.script.connect)
            match fate:
                case Unused():
                    return False
                case Unsent(pause):
                    self.leaves(caller, interval)
                    self.gives_back(caller)
                    slot.report(NotSent())
                    await self.pause(pause)
                    return True
                case Lost(after):
                    await self.send(caller, slot, interval, after)
                    return False
                case Answered(after, quota):
                    await self.send(caller, slot, interval, after)
                    self.accepted(caller, quota)
                    slot.report(AnsweredReport(quota))
                    return False
                case Refused():
                    await self.send(caller, slot, interval, fate.after)
                    await self.read(caller, slot, fate)
                    return True
                case _:
                    assert_never(fate)
        finally:
            self.gives_back(caller)
            slot.report(UnusedReport())

    async def send(self, caller: Caller, slot: Slot, interval: float, after: float) -> None:
        self.leaves(caller, interval)
        slot.report(Sent(self.now))
        await self.pause(after)

    async def pause(self, seconds: float) -> None:
        if seconds:
            await self.clock.sleep_until(self.now + seconds)

    def interval_of(self, caller: Caller) -> float:
        """Return the interval in force where a request waits."""
        own = caller.queue.route == JOBS
        return JOBS_INTERVAL if own else self.accounts.context.pacing.interval

    def leaves(self, caller: Caller, interval: float) -> None:
        """Note a try that leaves, or fails to; while it does, a longer interval cannot hold it."""
        kept = min(interval, self.interval_of(caller))
        self.tries[caller.queue].append((self.now, caller.ticket.cost, kept))
        self.out[caller.queue].discard(caller)

    async def read(self, caller: Caller, slot: Slot, fate: Refused) -> None:
        """Read the body of a refusal, whether or not its caller stays."""
        account = caller.queue.allowance
        if fate.reading:
            slot.report(Refusing())
            self.reading[account] += 1
        try:
            await self.pause(fate.reading)
        finally:
            self.reading[account] -= bool(fate.reading)
            self.refused(caller, fate)
            slot.report(RefusedReport(fate.named, fate.limit))

    def holds_of(self, caller: Caller) -> tuple[ModelHold, ModelHold]:
        """That of the caller's account, and that of its queue."""
        return self.holds[caller.queue.allowance], self.holds[caller.queue]

    def accepted(self, caller: Caller, quota: Quota | None) -> None:
        account = caller.queue.allowance
        if quota is not None:
            self.quotas[account] = (quota.remaining, self.now + quota.reset)
            if not quota.remaining:
                self.begin_hold(self.holds[account], quota.reset)
        for hold in self.holds_of(caller):
            if caller in hold.probes and self.now >= hold.until:
                hold.is_on = False
                hold.probes.clear()
        self.gives_back(caller)

    def refused(self, caller: Caller, fate: Refused) -> None:
        """A namespace of its own, or a wait beyond the clamp, is about the route."""
        route = caller.queue.route
        is_route = fate.limit.namespace == "flows"
        if fate.limit.namespace is None:
            is_route = fate.named is not None and fate.named > CLAMP
        own = self.holds[caller.queue if is_route else caller.queue.allowance]
        if caller in own.probes:
            own.probes.clear()
        for queue in self.queues:
            if queue.allowance is caller.queue.allowance or fate.limit.key == "org.flows":
                held = queue if is_route else queue.allowance
                if not is_route or queue.route == route:
                    self.begin_hold(self.holds[held], 0.5 if fate.named is None else fate.named)
        self.gives_back(caller)

    def begin_hold(self, hold: ModelHold, seconds: float) -> None:
        hold.is_on = True
        hold.until = max(hold.until, self.now + min(seconds, CLAMP))

    def gives_back(self, caller: Caller) -> None:
        if caller.has_slot:
            caller.has_slot = False
            self.in_flight[caller.queue.allowance] -= 1
            self.out[caller.queue].discard(caller)
            for hold in self.holds_of(caller):
                hold.probes.discard(caller)

    def early_sends(self) -> float:
        """Return what the proxy's own check of the pace has counted."""
        return sum(
            self.registry.get_sample_value(
                "export_proxy_early_sends_total", {"account": account, "route": route}
            )
            or 0.0
            for account, route in LINES
        )


DELAYS = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 3.0])
QUOTAS = st.sampled_from([None, None, None, Quota(0, 2.0), Quota(0, 20.0), Quota(1, 3.0)])
LIMITS = st.sampled_from(
    [
        NO_LIMIT,
        NO_LIMIT,
        Limit("a", "platform.api"),
        Limit("b", "flows"),
        Limit("org.flows", "flows"),
    ]
)
FATES = st.one_of(
    st.builds(Answered, DELAYS, QUOTAS),
    st.builds(
        Refused,
        DELAYS,
        st.sampled_from([None, 0.0, 0.5, 2.0, 20.0]),
        LIMITS,
        st.sampled_from([0.0, 0.0, 0.25]),
    ),
    st.builds(Lost, DELAYS),
    st.builds(Unsent, DELAYS),
    st.builds(Unused),
)
ARRIVALS = st.builds(
    Arrive,
    queue=st.integers(0, len(LINES) - 1),
    cost=st.sampled_from([1.0, 1.0, 1.5, 3.0]),
    limit=st.sampled_from([LONG, LONG, 0.0, 0.5, 2.0]),
    connect=st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0]),
    fates=st.lists(FATES, min_size=1, max_size=3),
    leaves_when_offered=st.sampled_from([False, False, False, True]),
)
STEPS = st.one_of(
    ARRIVALS,
    ARRIVALS,
    st.builds(Pass, st.sampled_from([0.25, 0.5, 1.0, 5.0])),
    st.builds(Stall, st.sampled_from([0.25, 0.5, 3.0])),
    st.builds(Leave, st.integers(0, 50)),
    st.builds(Vanish, st.integers(0, 50)),
    st.builds(Reload),
    st.builds(SetInterval, st.sampled_from([0.25, 0.5, 2.0])),
)


def run(script: Coroutine[None, None, None]) -> None:
    """Run on a loop of its own: Hypothesis plays many scripts in one test."""
    with asyncio.Runner() as runner:
        runner.run(script)


AT_ITS_DEADLINE: list[tuple[Step, bool]] = [  # the second wait ends when the hold does
    (
        Arrive(
            queue=queue, cost=cost, limit=limit, connect=0.0, fates=fates, leaves_when_offered=False
        ),
        False,
    )
    for queue, cost, limit, fates in (
        (0, 1.0, LONG, [Answered(after=0.0)]),
        (2, 1.5, 0.5, [Refused(after=0.0, named=0.0, reading=0.25)]),
        (2, 1.0, LONG, [Unused()]),
    )
]


LONGER_AGAIN: list[tuple[Step, bool]] = [  # between the offer of a slot and the caller's next step
    (
        Arrive(
            queue=0,
            cost=1.0,
            limit=LONG,
            connect=0.0,
            fates=[Answered(after=0.0)],
            leaves_when_offered=False,
        ),
        False,
    ),
    (Pass(0.25), False),
    (SetInterval(0.25), False),
    (Reload(), False),
    (SetInterval(0.5), False),
]


@pytest.mark.no_cover
@example(AT_ITS_DEADLINE)
@example(LONGER_AGAIN)
@settings(
    max_examples=4 * settings().max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(STEPS, st.booleans()), max_size=15)
    | st.lists(st.tuples(STEPS, st.booleans()), min_size=15, max_size=60)
)
def test_whatever_happens_the_promises_hold(steps: list[tuple[Step, bool]]) -> None:
    """Pace, order, room, hold, one slot a place; nobody is lost and nothing is left over.

    Nothing leaves that a hold covers, and what no hold covers is served in the end.
    """

    async def script() -> None:
        async with asyncio.TaskGroup() as tasks:
            world = World(tasks)
            await world.play(steps)
            await world.clock.advance(2 * LONG)
        assert world.broken == []
        for queue, tries in world.tries.items():
            for (earlier, cost, _), (later, _, interval) in pairwise(tries):
                assert not queue.paced or later - earlier >= cost * interval - ROUNDING
        if not any(isinstance(step, SetInterval) for step, _ in steps):
            assert world.early_sends() == 0.0
        for caller in world.callers:
            if caller.is_present and not caller.is_cancelled:
                assert caller.end in ends(caller)
        assert [queue.depth for queue in world.queues] == [0] * len(world.queues)
        assert [queue.allowance.in_flight for queue in world.queues] == [0] * len(world.queues)
        assert world.clock.pending == 0

    run(script())


def ends(caller: Caller) -> tuple[str, ...]:
    """Return how the request of a caller who stays may end."""
    if caller.script.limit == LONG:
        return ("served",)
    if caller.ended_at < caller.deadline:
        return ("served", "queue-full")
    return ("served", "queue-full", "wait-expired")


@dataclass(frozen=True, slots=True)
class Newcomer:
    queue: int
    cost: float
    pause: float  # before it comes


@pytest.mark.no_cover
@settings(max_examples=2 * settings().max_examples, deadline=None)
@given(
    sent=st.lists(st.sampled_from([1.0, 1.5, 3.0]), min_size=1, max_size=4),
    named=st.lists(st.sampled_from([0.0, 0.5, 4.0]), max_size=4),
    answer=st.sampled_from([0.25, 1.0]),
    newcomers=st.lists(
        st.builds(
            Newcomer,
            queue=st.integers(0, 2),
            cost=st.sampled_from([1.0, 1.5, 3.0]),
            pause=st.sampled_from([0.0, 0.0, 0.125, 0.5, 2.0]),
        ),
        max_size=20,
    ),
)
def test_predicted_wait_is_the_wait_that_comes(
    sent: list[float], named: list[float], answer: float, newcomers: list[Newcomer]
) -> None:
    """For those who come, and for those who come back; if nobody leaves and no hold grows.

    Some requests are sent, some of these refused; they come back, oldest first, then others come.
    """

    async def wait(waiting: Waiting, queue: AccountQueue, ticket: Ticket, clock: FakeClock) -> None:
        predicted, joined = predicted_wait(queue, ticket, clock.monotonic()), clock.monotonic()
        wait = wait_of(1.1 * predicted + 1.0, joined)  # nobody else must be pushed out of time
        waiting.admit(queue, ticket, wait)
        slot = await waiting.slot(queue, ticket, wait)
        assert slot is not None
        waited = clock.monotonic() - joined
        # Without a pace only room in flight is predicted, and here it comes sooner than before.
        assert waited == predicted if queue.paced else waited <= predicted
        slot.report(Sent(clock.monotonic()))
        slot.report(AnsweredReport())

    async def script() -> None:
        async with asyncio.TaskGroup() as tasks:
            world = World(tasks)
            world.accounts.context.pacing = Pacing(interval=INTERVAL)
            queue, clock = world.queues[0], world.clock
            waiting = world.accounts.waiting
            flying: list[tuple[Ticket, Slot]] = []
            for cost in sent:
                ticket = Ticket(world.accounts.context.next_arrival(), cost=cost)
                await clock.advance(2.0)
                slot = await waiting.slot(queue, ticket, wait_of(LONG, clock.monotonic()))
                assert slot is not None
                slot.report(Sent(clock.monotonic()))
                flying.append((ticket, slot))
            await clock.advance(answer)
            for seconds, (_, slot) in zip(named, flying, strict=False):
                slot.report(RefusedReport(seconds))
            for _, slot in flying[len(named) :]:
                slot.report(AnsweredReport())
            for ticket, _ in flying[: len(named)]:
                tasks.create_task(wait(waiting, queue, ticket, clock))
                await clock.advance(0)
            for newcomer in newcomers:
                await clock.advance(newcomer.pause)
                ticket = Ticket(world.accounts.context.next_arrival(), cost=newcomer.cost)
                tasks.create_task(wait(waiting, world.queues[newcomer.queue], ticket, clock))
                await clock.advance(0)
            await clock.advance(LONG)

    run(script())
