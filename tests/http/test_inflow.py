"""What is to come from a server: nothing is expected of it while the reader of the body is slow."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest

from proxy.clock import Timer
from proxy.http.inflow import Inflow
from tests.kit.clock import FakeClock

SECONDS = 5.0


class Loop:
    """Has a clock and timers that the test moves."""

    def __init__(self) -> None:
        self.clock = FakeClock()

    def time(self) -> float:
        return self.clock.monotonic()

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Timer:
        return self.clock.call_at(when, partial(callback, *args))


class Transport(asyncio.Transport):
    """Knows if it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


class Bench:
    """An inflow that expects something, and how often it expired."""

    def __init__(self) -> None:
        self.loop, self.transport, self.expirations = Loop(), Transport(), 0
        self.inflow = Inflow(cast("asyncio.AbstractEventLoop", self.loop), SECONDS)
        self.inflow.begin(self.transport, self.expire)
        self.inflow.expect()

    def expire(self) -> None:
        self.expirations += 1


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_server_that_sends_nothing_expires(bench: Bench) -> None:
    await bench.loop.clock.advance(SECONDS - 0.1)
    assert bench.expirations == 0
    await bench.loop.clock.advance(0.2)
    assert bench.expirations == 1


async def test_nothing_expires_while_the_reader_is_slow(bench: Bench) -> None:
    bench.inflow.pause_reading()
    assert not bench.transport.is_read
    await bench.loop.clock.advance(10 * SECONDS)
    bench.inflow.resume_reading()
    assert bench.transport.is_read
    await bench.loop.clock.advance(SECONDS - 0.1)
    assert bench.expirations == 0
    await bench.loop.clock.advance(0.2)
    assert bench.expirations == 1


async def test_it_leaves_a_transport_alone_that_it_has_ended_with(bench: Bench) -> None:
    bench.inflow.end()
    bench.inflow.pause_reading()
    await bench.loop.clock.advance(10 * SECONDS)
    assert (bench.transport.is_read, bench.expirations, bench.inflow.connected) == (True, 0, False)
