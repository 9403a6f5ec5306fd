"""Sending a request: what counts as an attempt, and where its time goes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from proxy.forwarding.attempts import Attempts, PendingRequest, QueueCaller
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.merging import Merging
from proxy.forwarding.sending import Sender
from proxy.http.client import Client
from proxy.http.messages import OutcomeUnknown, Outgoing, Unsent, Withheld
from proxy.pacing.accounts import Accounts
from proxy.problems import Problem
from proxy.rules.needs import Needs
from proxy.settings import Retry, Settings
from proxy.telemetry.callers import Callers
from proxy.telemetry.metrics import Metrics
from tests.kit.clock import FakeClock
from tests.kit.proxy import settings_for
from tests.kit.requests import request_of

CONNECTING = 2.0


class Unreachable:
    """An API that is connected to for two seconds, and then cannot be reached."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.tries = 0

    async def send(self, _: Outgoing, *, may_leave: Callable[[], bool], **__: object) -> None:
        self.tries += 1
        await self._clock.sleep_until(self._clock.monotonic() + CONNECTING)
        if not may_leave():
            raise Withheld
        raise Unsent


class ManagedToken:
    """A token that is renewed while the first tries connect."""

    def __init__(self, *, renewals: int) -> None:
        self._renewals = renewals

    async def usable(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(value="t")

    def may_be_sent(self, _: object) -> bool:
        self._renewals -= 1
        return self._renewals < 0


@asynccontextmanager
async def connection() -> AsyncIterator[asyncio.Transport]:
    """The transport of a caller who is there."""
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    with theirs:
        yield transport
        transport.close()


def settings(**retry: Any) -> Settings:
    return settings_for("http://api.example").model_copy(update={"retry": Retry(**retry)})


@asynccontextmanager
async def pending_in(
    chosen: Settings, api: object, clock: FakeClock, managed: object = None
) -> AsyncIterator[tuple[Sender, PendingRequest]]:
    """A sender to that API, and a request that has just come."""
    metrics = Metrics(CollectorRegistry())
    accounts = Accounts(chosen, clock=clock, metrics=metrics, random=lambda: 0.0)
    sender = Sender(
        chosen,
        clock=clock,
        metrics=metrics,
        callers=Callers(),
        accounts=accounts,
        drain=Drain(),
        attempts=Attempts(cast("Client", api), clock=clock, metrics=metrics, quota=None),
        merging=Merging(api=cast("Client", api), spawn=asyncio.get_running_loop().create_task),
    )
    async with connection() as transport:
        request = request_of("POST", transport=transport)
        yield (
            sender,
            PendingRequest(
                Exchange(request, "id-1", clock, limit=1000.0),
                caller=QueueCaller("someone"),
                account=(account := accounts.unconfigured("someone")),
                queue=account.queue("api", paced=False),
                outgoing=Outgoing("POST", "/", "", [], b""),
                needs=Needs(scopes=frozenset(), cost=1.0),
                managed=cast("Any", managed),
                is_present=lambda: True,
            ),
        )


async def refusal_of(sender: Sender, pending: PendingRequest, clock: FakeClock) -> Problem:
    """Send it, and return how it ends within a minute."""
    ends: list[Problem] = []

    async def send() -> None:
        try:
            await sender.send(pending)
        except Problem as problem:
            ends.append(problem)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        await clock.advance(60)
    (end,) = ends
    return end


async def test_a_try_that_is_withheld_while_it_connects_is_no_attempt() -> None:
    clock = FakeClock()
    api, managed = Unreachable(clock), ManagedToken(renewals=3)
    chosen = settings(max_attempts=2, initial_backoff=1, max_backoff=1)
    async with pending_in(chosen, api, clock, managed) as (sender, pending):
        refusal = await refusal_of(sender, pending, clock)
    exchange = pending.exchange
    assert refusal.name == "upstream-unreachable"
    assert api.tries == 5
    assert exchange.attempts == ("never left", "never left")
    assert exchange.spent["connecting"] == 3 * CONNECTING
    assert exchange.spent["upstream"] == 2 * CONNECTING


class ClosesThenDown(Unreachable):
    """An API that closes an idle connection as it is used, and cannot be reached afterwards."""

    async def send(self, _: Outgoing, *, may_leave: Callable[[], bool], **__: object) -> None:
        if self.tries:
            await super().send(_, may_leave=may_leave)
        self.tries += 1
        raise OutcomeUnknown(timed_out=False, may_repeat=True)


async def test_read_whose_answer_was_lost_is_sent_again_however_long_it_waited_before() -> None:
    clock = FakeClock()
    api, chosen = ClosesThenDown(clock), settings(max_attempts=2, max_elapsed=30)
    async with pending_in(chosen, api, clock) as (sender, pending):
        await clock.advance(100)
        await refusal_of(sender, pending, clock)
    assert api.tries == 2


async def test_read_whose_answer_was_lost_is_never_said_to_be_unsent() -> None:
    clock = FakeClock()
    api, chosen = ClosesThenDown(clock), settings(max_attempts=2)
    async with pending_in(chosen, api, clock) as (sender, pending):
        refusal = await refusal_of(sender, pending, clock)
    assert api.tries == 2
    assert refusal.name == "outcome-unknown"
