"""Sending a request: what counts as an attempt, and where its time goes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from proxy.forwarding.attempts import Attempts, PendingRequest, QueueCaller
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.merging import Merging
from proxy.forwarding.sending import Sender
from proxy.http.client import Client
from proxy.http.messages import Outgoing, Unsent, Withheld
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


async def test_a_try_that_is_withheld_while_it_connects_is_no_attempt() -> None:
    clock = FakeClock()
    metrics, api = Metrics(CollectorRegistry()), Unreachable(clock)
    chosen = settings(max_attempts=2, initial_backoff=1, max_backoff=1)
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
        exchange = Exchange(request, "id-1", clock, limit=1000.0)
        pending = PendingRequest(
            exchange,
            caller=QueueCaller("someone"),
            account=(account := accounts.unconfigured("someone")),
            queue=account.queue("api", paced=False),
            outgoing=Outgoing("POST", "/", "", [], b""),
            needs=Needs(scopes=frozenset(), cost=1.0),
            managed=cast("Any", ManagedToken(renewals=3)),
            is_present=lambda: True,
        )

        async def fail() -> None:
            with pytest.raises(Problem, match="cannot be reached"):
                await sender.send(pending)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            await clock.advance(60)
    assert api.tries == 5
    assert exchange.attempts == ("never left", "never left")
    assert exchange.spent["connecting"] == 3 * CONNECTING
    assert exchange.spent["upstream"] == 2 * CONNECTING
