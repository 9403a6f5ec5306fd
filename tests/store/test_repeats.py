"""Where the records of sent requests are kept."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from proxy.rules.repeats import InDoubt, KeptAnswer, Record
from proxy.settings import Repeats
from proxy.store.repeats import ENTRY_BYTES, LocalRepeats, Owner
from tests.kit.clock import FakeClock

LONDON, PARIS = Owner("l", "london"), Owner("p", "paris")
DOUBT = Record(sameness=b"s", request_id="1", sent_at=1.0, until=2.0, state=InDoubt())


def answer(size: int = 2) -> Record:
    return replace(DOUBT, state=KeptAnswer(202, "Accepted", (("A", "b"),), b"x" * size))


class Table:
    """A table in memory, its clock, and what it gave up of each account."""

    def __init__(self, **bounds: Any) -> None:
        self.clock = FakeClock()
        self.evicted: Counter[str] = Counter()
        self.store = LocalRepeats(
            Repeats(**bounds),
            clock=self.clock,
            on_evicted=lambda label: self.evicted.update([label]),
        )

    def states(self, *names: bytes) -> list[str]:
        records = [self.store.get(name) for name in names]
        return ["none" if one is None else type(one.state).__name__ for one in records]


async def test_a_full_table_gives_up_the_oldest_first() -> None:
    table = Table(max_entries=3)
    for name in (b"1", b"2", b"3", b"4"):
        table.store.put(LONDON, name, DOUBT, 60)
    assert table.states(b"1", b"2", b"3", b"4") == ["none", "InDoubt", "InDoubt", "InDoubt"]
    assert table.evicted == {"london": 1}


async def test_a_flood_costs_the_account_that_makes_it() -> None:
    table = Table(max_entries=10)
    for number in range(3):
        table.store.put(PARIS, b"p%d" % number, DOUBT, 60)
    for number in range(1000):
        table.store.put(LONDON, b"l%d" % number, DOUBT, 60)
    assert table.states(b"p0", b"p1", b"p2") == ["InDoubt"] * 3
    assert table.evicted == {"london": 993}


async def test_an_answer_that_is_given_up_stays_in_doubt() -> None:
    table = Table(max_bytes=3 * ENTRY_BYTES + 2200)
    for name in (b"1", b"2", b"3"):
        table.store.put(LONDON, name, answer(900), 60)
    assert table.states(b"1", b"2", b"3") == ["InDoubt", "KeptAnswer", "KeptAnswer"]


async def test_an_answer_that_was_delivered_is_given_up_whole() -> None:
    table = Table(max_bytes=3 * ENTRY_BYTES + 2200)
    table.store.put(LONDON, b"1", replace(answer(900), is_delivered=True), 60)
    table.store.put(LONDON, b"2", answer(900), 60)
    table.store.put(LONDON, b"3", answer(900), 60)
    assert table.states(b"1", b"2", b"3") == ["none", "KeptAnswer", "KeptAnswer"]


@pytest.mark.parametrize("size", [0, 5000])
async def test_very_many_lost_requests_stay_below_the_bounds(size: int) -> None:
    table = Table(max_entries=5000, max_bytes=2_000_000)
    for number in range(20_000):
        owner = Owner(f"{number % 7}", "other")
        table.store.put(owner, b"%d" % number, answer(size) if size else DOUBT, 60)
    assert len(table.store) <= 2_000_000 // ENTRY_BYTES
    assert table.states(b"19999")[0] != "none"
    assert table.states(b"0") == ["none"]


async def test_new_bounds_hold_at_once() -> None:
    table = Table()
    for number in range(10):
        table.store.put(LONDON, b"%d" % number, DOUBT, 60)
    table.store.apply(Repeats(max_entries=2))
    assert len(table.store) == 2


async def test_what_is_over_makes_room_by_itself() -> None:
    table = Table()
    for number in range(10):
        table.store.put(LONDON, b"%d" % number, DOUBT, 5)
    await table.clock.advance(11)
    table.store.put(LONDON, b"new", DOUBT, 5)
    assert len(table.store) == 1
    assert table.evicted == {}
