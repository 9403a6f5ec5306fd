"""Snapshots: accounts are read in slices, and one answer is made at a time, in a thread."""

import asyncio
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry

from proxy.admin.snapshot import Snapshots
from proxy.clock import SystemClock
from proxy.pacing.accounts import Accounts
from proxy.pacing.slot import OnlyIfFree, Refused, Sent, Ticket
from proxy.problems import Problem
from proxy.rules.state import AccountState
from proxy.telemetry.callers import Callers
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.refusals import Refusals
from proxy.tokens.managed import ManagedTokens
from tests.kit.clock import FakeClock
from tests.kit.proxy import settings_for, settings_of

MANY = 3000


class Bench:
    """Snapshots of two configured accounts and any number of strangers."""

    def __init__(self, clock: FakeClock | SystemClock) -> None:
        settings = settings_for(
            "http://localhost",
            accounts=[{"name": "london", "client_id": "1"}, {"name": "paris", "client_id": "2"}],
            identity={"max_unidentified": MANY},
        )
        self.registry = CollectorRegistry()
        self.refusals = Refusals()
        self.accounts = Accounts(
            settings, clock=clock, metrics=Metrics(self.registry), random=lambda: 0.0
        )
        tokens = Mock(spec=ManagedTokens, by_name={})
        self.snapshots = Snapshots(self.accounts, tokens, self.refusals, Callers(), clock=clock)

    async def names(self) -> list[str]:
        return await self.snapshots.make(lambda states: [state.name for state in states])


class Pauses(SystemClock):
    """Counts how often the loop was let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    async def sleep_until(self, when: float) -> None:
        self.count += 1
        await super().sleep_until(when)


async def test_the_loop_goes_on_while_very_many_accounts_are_read() -> None:
    clock = Pauses()
    b = Bench(clock)
    for number in range(MANY):
        b.accounts.unidentified(f"{number}".encode()).queue("exports", paced=True)
    assert await b.names() == ["london", "paris", "other"]
    assert clock.count >= MANY / 100
    b.snapshots.close()


async def test_one_thing_is_made_after_the_other_and_never_on_the_loop() -> None:
    """Even if who asked for the first has gone: what runs cannot be stopped."""
    b = Bench(SystemClock())
    begun, go_on = threading.Event(), threading.Event()
    running: list[str] = []
    overlaps: list[list[str]] = []

    def slow(_: Sequence[AccountState]) -> str:
        running.append(threading.current_thread().name)
        begun.set()
        go_on.wait(10)
        overlaps.append([*running])
        running.pop()
        return "made"

    loop = asyncio.get_running_loop()
    first = loop.create_task(b.snapshots.make(slow))
    await asyncio.to_thread(begun.wait, 10)
    begun.clear()
    first.cancel()
    await asyncio.wait([first])
    second = loop.create_task(b.snapshots.make(slow))
    assert not await asyncio.to_thread(begun.wait, 0.2)
    go_on.set()
    assert await second == "made"
    assert [len(each) for each in overlaps] == [1, 1]
    assert all(name.startswith("snapshot") for each in overlaps for name in each)
    b.snapshots.close()


async def test_a_snapshot_that_fails_fails_for_its_asker_alone() -> None:
    b = Bench(SystemClock())

    def fail(_: Sequence[AccountState]) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await b.snapshots.make(fail)
    assert await b.names() == ["london", "paris"]
    b.snapshots.close()


@pytest.mark.parametrize("fails", [False, True])
async def test_the_interpreters_switch_interval_is_restored(*, fails: bool) -> None:
    b = Bench(SystemClock())
    sys.setswitchinterval(0.004)
    seen = []

    def make(_: Sequence[AccountState]) -> None:
        seen.append(sys.getswitchinterval())
        if fails:
            raise LookupError

    with pytest.raises(LookupError) if fails else nullcontext():
        await b.snapshots.make(make)
    assert seen == [pytest.approx(0.0005)]
    assert sys.getswitchinterval() == pytest.approx(0.004)
    sys.setswitchinterval(0.005)  # Python's own
    b.snapshots.close()


async def test_refusals_are_shown_with_their_account_and_those_of_nobody_with_all_others() -> None:
    b = Bench(SystemClock())
    b.refusals.note("paris", Problem("route-denied", "One."), at=1.0)
    b.refusals.note("other", Problem("not-found", "Two."), at=2.0)
    b.refusals.note("other", Problem("loop", "Three."), at=3.0)
    states = await b.snapshots.make(list)
    told = {state.name: [refusal.detail for refusal in state.refusals] for state in states}
    assert told == {"london": [], "paris": ["One."], "other": ["Three.", "Two."]}
    b.refusals.apply(settings_of("london"))
    states = await b.snapshots.make(list)
    assert [len(state.refusals) for state in states] == [0, 0, 2]
    b.snapshots.close()


async def test_a_hold_is_counted_while_it_lasts_and_once() -> None:
    clock = FakeClock()
    b = Bench(clock)
    await clock.advance(10)
    account = b.accounts.configured("london")
    queue = account.queue("exports", paced=True)
    slot = await b.accounts.waiting.slot(queue, Ticket(1), OnlyIfFree())
    assert slot is not None
    slot.report(Sent(clock.monotonic()))
    slot.report(Refused(8.0))

    def counted() -> float | None:
        return b.registry.get_sample_value("export_proxy_held_seconds_total", {"account": "london"})

    async def held_after(seconds: float) -> float | None:
        await clock.advance(seconds)
        await asyncio.gather(b.names(), clock.advance(0))
        return counted()

    assert await held_after(3.0) == 3.0
    assert await held_after(2.0) == 5.0
    assert await held_after(0.0) == 5.0
    assert await held_after(10.0) == 8.0  # then only the probe's answer is awaited
    b.snapshots.close()
