"""Pacing on a clock that stands still: accounts, and callers in front of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import ceil, inf

from prometheus_client import CollectorRegistry

from proxy.pacing.account import Account
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.accounts import Accounts
from proxy.pacing.allowance import Mode
from proxy.pacing.leases import Alone, HoldLeft, Leases, SharedQueue
from proxy.pacing.prediction import predicted_wait
from proxy.pacing.slot import Answered, OnlyIfFree, Sent, Slot, Ticket, Wait, WaitUntil
from proxy.problems import Problem
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


class OtherReplicas(Alone):
    """A store of two replicas that gives every lease to this one, and keeps what it is told."""

    replicas = 2

    def __init__(self) -> None:
        self.paced: dict[str, bool] = {}  # by the name of the leases
        self.wanted_by: set[str] = set()
        self.holds: dict[tuple[str, str], HoldLeft] = {}  # by account and leases; "" is all
        self.every: int | None = None  # of how many intervals one is this replica's

    def next_moment(self, at: float, interval: float) -> float:
        if self.every is None:
            return at
        return ceil(at / (self.every * interval)) * self.every * interval

    def opened(self, queue: SharedQueue) -> None:
        self.paced[queue.lease_name] = queue.paced
        super().opened(queue)

    def moved(self, queue: SharedQueue, old: str) -> None:
        self.paced[queue.lease_name] = self.paced.pop(old)

    def wanted(self, queue: SharedQueue) -> None:
        self.wanted_by.add(queue.lease_name)

    def unused(self, queue: SharedQueue) -> None:
        self.wanted_by.discard(queue.lease_name)

    def held(self, key: str, route: str, left: HoldLeft) -> None:
        self.holds[key, route] = left

    def hold_over(self, key: str, route: str) -> None:
        self.holds.pop((key, route), None)


class Bench:
    """Accounts with their clock, their metrics, and the callers in front of them."""

    def __init__(self, settings: Settings, tasks: asyncio.TaskGroup, leases: Leases | None) -> None:
        self.clock = StallingClock()
        self.registry = CollectorRegistry()
        self.jitter = 0.0
        self.is_draining = False
        self.closes_at = inf
        self.metrics = Metrics(self.registry)
        self.accounts = Accounts(
            settings,
            clock=self.clock,
            metrics=self.metrics,
            random=lambda: self.jitter,
            leases=leases,
            is_draining=lambda: self.is_draining,
            closes_at=lambda: self.closes_at,
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
    ) -> AccountQueue:
        return self.account(account).queue(route, paced=paced)

    def ticket(
        self,
        *,
        cost: float = 1.0,
        is_present: Callable[[], bool] = lambda: True,
        caller: str = "",
        weight: int = 1,
    ) -> Ticket:
        return Ticket(
            self.accounts.context.next_arrival(),
            cost=cost,
            is_present=is_present,
            caller=caller,
            weight=weight,
        )

    def join(
        self,
        queue: AccountQueue,
        *,
        limit: float = 1000.0,
        cost: float = 1.0,
        caller: str = "",
        weight: int = 1,
    ) -> Caller:
        """Put a new request in the queue that keeps the slot until told otherwise."""
        made = Caller(
            self.ticket(cost=cost, is_present=lambda: made.is_present, caller=caller, weight=weight)
        )
        return self.rejoin(queue, made, limit=limit)

    def rejoin(self, queue: AccountQueue, caller: Caller, *, limit: float = 1000.0) -> Caller:
        """Put a caller in the queue again, with the ticket it has."""
        caller.task = self._tasks.create_task(self._wait(queue, caller, limit))
        return caller

    async def _wait(self, queue: AccountQueue, caller: Caller, limit: float) -> None:
        try:
            caller.slot = await self.accounts.waiting.slot(
                queue, caller.ticket, wait_of(limit, self.now)
            )
            caller.got_at = self.now
            if caller.is_prompt:
                self.use(caller)
        except Problem as problem:
            caller.problem = problem

    async def get(self, queue: AccountQueue, *, limit: float = 1000.0, cost: float = 1.0) -> Slot:
        """Return a slot that is free now."""
        caller = self.join(queue, limit=limit, cost=cost)
        await self.clock.advance(0)
        return caller.take()

    def send(self, slot: Slot) -> Slot:
        slot.report(Sent(self.clock.monotonic()))
        return slot

    def use(self, caller: Caller) -> None:
        """Send and be answered, all at once."""
        self.send(caller.take()).report(Answered())

    async def all_served(self, callers: list[Caller]) -> list[float]:
        """Let everybody send as soon as their slot comes; return the seconds of the sends."""
        for caller in callers:
            caller.is_prompt = True
            if caller.slot is not None and not caller.is_waiting and caller.slot.sent_at == -inf:
                self.use(caller)
        while any(caller.is_waiting for caller in callers):
            await self.clock.advance(1.0)
        return [caller.take().sent_at for caller in callers]

    def admit(self, queue: AccountQueue, limit: float, *, caller: str = "") -> Problem | None:
        """Return the refusal of a newcomer, or None if it may join the queue."""
        try:
            self.accounts.waiting.admit(queue, self.ticket(caller=caller), wait_of(limit, self.now))
        except Problem as problem:
            return problem
        return None

    def predicted_wait(self, ticket: Ticket) -> float:
        """Return the seconds until this ticket would be sent on london's exports."""
        return predicted_wait(self.queue(), ticket, self.now)

    def drain(self) -> None:
        """Begin the end of the proxy."""
        self.is_draining = True
        self.accounts.drain()

    def hold_left(self) -> float:
        """Seconds left of the hold of all routes of london."""
        return self.account().allowance.holding.state.remaining(self.now)

    def held_seconds(self) -> float:
        """Seconds that london has spent on hold on all routes."""
        return self.account().allowance.holding.state.held_seconds(self.now)

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"export_proxy_{name}", labels) or 0.0

    def waits(self, outcome: str, route: str = "exports") -> float:
        """Return how many times in the queue ended so."""
        labels = {"account": "london", "route": route, "outcome": outcome}
        return self.counted("queue_wait_seconds_count", **labels)


@asynccontextmanager
async def bench(  # noqa: PLR0913 -- what a test may want otherwise, by name
    pacing: Pacing | None = None,
    *,
    identity: Identity | None = None,
    retry: Retry | None = None,
    warm: bool = True,
    mode: Mode | None = None,
    leases: Leases | None = None,
) -> AsyncIterator[Bench]:
    """Run the pacing of two accounts, `london` and `paris`; at the end nothing may be left over.

    Warm, the first interval has passed: a queue is free at once. `mode` is that of london.
    """
    settings = Settings(
        upstream=UPSTREAM,
        pacing=pacing or Pacing(),
        retry=retry or Retry(),
        identity=identity or Identity(),
        accounts=(
            AccountSettings(name="london", client_id="id-1", mode=mode),
            AccountSettings(name="paris", client_id="id-2", interval=2.0),
        ),
    )
    async with asyncio.TaskGroup() as tasks:
        under_test = Bench(settings, tasks, leases)
        if warm:
            await under_test.clock.advance(10)
        yield under_test
        await under_test.clock.advance(2000)
        for account in under_test.accounts.accounts():
            assert account.allowance.in_flight == 0
            assert [queue.depth for queue in account.queues] == [0] * len(account.queues)
        assert under_test.clock.pending == 0


def wait_of(seconds: float, now: float) -> Wait:
    """Return the wait of so many seconds from now; 0 takes a slot only if one is free."""
    return WaitUntil(now + seconds) if seconds else OnlyIfFree()
