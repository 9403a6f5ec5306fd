"""Accounts as replicas of one proxy: one in memory, or several on one store, in real time."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prometheus_client import CollectorRegistry

from proxy.clock import SystemClock
from proxy.pacing.account_queue import AccountQueue
from proxy.pacing.accounts import Accounts
from proxy.pacing.prediction import predicted_wait
from proxy.pacing.slot import Answered, Sent, Slot, Ticket
from proxy.problems import Problem
from proxy.settings import Account, Settings
from proxy.store.connection import Connection
from proxy.store.leases import SharedLeases
from proxy.store.orders import SharedOrders
from proxy.telemetry.metrics import Metrics
from tests.kit.pacing import wait_of
from tests.kit.process import until

CLOCK = SystemClock()
ROUNDING = 1e-4
STORE_TIMEOUT = 2.0  # with the store, where a machine that stands still must be no outage


@dataclass(frozen=True, slots=True)
class Send:
    """Who sent when (monotonic seconds)."""

    at: float
    replica: int
    caller: str


class Replica:
    """The accounts of one replica; its callers send when they may and are answered at once."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        tasks: asyncio.TaskGroup,
        sends: list[Send],
    ) -> None:
        self.number = number
        self.registry = CollectorRegistry()
        self.connection: Connection | None = None
        self.sends = sends
        self._tasks = tasks
        self._settings = settings
        self._listening: asyncio.Task[None] | None = None
        self._is_draining = False
        metrics = Metrics(self.registry)
        leases: SharedLeases | None = None
        if settings.store.is_shared:
            spawn = tasks.create_task
            self.connection = Connection(settings.store, clock=CLOCK, metrics=metrics, spawn=spawn)
            leases = SharedLeases(
                self.connection, clock=CLOCK, metrics=metrics, random=random.random
            )
        self._leases = leases
        self.accounts = Accounts(
            settings,
            clock=CLOCK,
            metrics=metrics,
            random=lambda: 0.0,
            leases=leases,
            is_draining=lambda: self._is_draining,
        )
        if self.connection is not None and leases is not None:
            operators = self.accounts.operators
            orders = SharedOrders(self.connection, clock=CLOCK, changed=operators.obey_shared)
            operators.store = orders
            self._listening = tasks.create_task(self.connection.listen(leases.inbox, orders))

    @property
    def store(self) -> Connection:
        assert self.connection is not None
        return self.connection

    @property
    def leases(self) -> SharedLeases:
        assert self._leases is not None
        return self._leases

    @property
    def is_shared(self) -> bool:
        return self.accounts.context.leases.spread == 1

    def queue(
        self, account: str = "london", route: str = "exports", *, paced: bool = True
    ) -> AccountQueue:
        return self.accounts.configured(account).queue(route, paced=paced)

    def predicted_wait(self) -> float:
        """Seconds until a newcomer would be sent on london's exports."""
        return predicted_wait(self.queue(), self.ticket(), CLOCK.monotonic())

    def ticket(self, cost: float = 1.0) -> Ticket:
        return Ticket(self.accounts.context.next_arrival(), cost=cost)

    async def slot(self, queue: AccountQueue, *, limit: float = 60.0, cost: float = 1.0) -> Slot:
        """Wait for a slot, and keep it."""
        ticket = self.ticket(cost)
        wait = wait_of(limit, CLOCK.monotonic())
        self.accounts.waiting.admit(queue, ticket, wait)
        slot = await self.accounts.waiting.slot(queue, ticket, wait)
        assert slot is not None
        return slot

    def send(self, slot: Slot, caller: str = "") -> None:
        now = CLOCK.monotonic()
        self.sends.append(Send(now, self.number, caller))
        slot.report(Sent(now))

    async def export(
        self, queue: AccountQueue, caller: str = "", *, limit: float = 60.0, cost: float = 1.0
    ) -> Problem | None:
        """Be one caller; the refusal, if there was one."""
        try:
            slot = await self.slot(queue, limit=limit, cost=cost)
        except Problem as problem:
            return problem
        self.send(slot, caller)
        slot.report(Answered())
        return None

    def caller(
        self, queue: AccountQueue, caller: str = "", *, limit: float = 60.0, cost: float = 1.0
    ) -> asyncio.Task[Problem | None]:
        """Start a caller, and do not wait for it."""
        return self._tasks.create_task(self.export(queue, caller, limit=limit, cost=cost))

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"export_proxy_{name}", labels) or 0.0

    async def close(self) -> None:
        """End in order."""
        self._is_draining = True
        self.accounts.drain()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
            await self.store.close()


def settings_of(url: str, *, interval: float, replicas: int = 1, **sections: Any) -> Settings:
    document: dict[str, Any] = {
        "upstream": {"api_url": "https://api.example", "login_url": "https://login.example"},
        "pacing": {"interval": interval, "max_in_flight": 1000, "max_wait": 60},
        "store": {"url": url, "replicas": replicas, "timeout": STORE_TIMEOUT},
        "accounts": [Account(name=name, client_id=f"id-of-{name}") for name in ("london", "paris")],
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return Settings.model_validate(document)


@asynccontextmanager
async def replicas_of(settings: Settings, count: int) -> AsyncIterator[list[Replica]]:
    """Run so many, ready to send; `sends` is one list for all of them."""
    sends: list[Send] = []
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        replicas = [Replica(number, settings, tasks, sends) for number in range(count)]
        for replica in replicas:
            stack.push_async_callback(replica.close)
            if replica.connection is not None:
                await replica.connection.settled.wait()
        # The first send of any queue comes no earlier than one interval after the start.
        await pause(settings.pacing.interval)
        yield replicas


async def pause(seconds: float) -> None:
    await CLOCK.sleep_until(CLOCK.monotonic() + seconds)


async def all_shared(replicas: Sequence[Replica], *, within: float = 30) -> None:
    """Wait until all of them keep the shared pace."""

    async def question() -> bool:
        return all(replica.is_shared for replica in replicas)

    await until(question, within=within)


def gaps(times: Iterable[float]) -> list[float]:
    """The seconds between one and the next."""
    return [later - earlier for earlier, later in pairwise(sorted(times))]


def early(times: Iterable[float], interval: float) -> int:
    """How many came before their time."""
    return sum(gap < interval - ROUNDING for gap in gaps(times))
