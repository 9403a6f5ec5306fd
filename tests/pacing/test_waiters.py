"""The order of tickets, and what is kept of those that left."""

import asyncio
import gc
import weakref

import pytest

from proxy.pacing.slot import Ticket
from proxy.pacing.waiters import Waiters


def ticket(number: int, *, cost: float = 1.0) -> Ticket:
    """Return a ticket with an offer; call it while a loop runs."""
    made = Ticket(number, cost=cost, is_present=lambda: number >= 0)
    made.offer = asyncio.get_running_loop().create_future()
    return made


async def test_tickets_go_by_arrival_in_whatever_order_they_are_added() -> None:
    waiters = Waiters()
    for number in (3, 1, 2):
        waiters.add(ticket(number))
    order = []
    while waiters.first is not None:
        order.append(waiters.first.number)
        waiters.remove(waiters.first)
    assert order == [1, 2, 3]


async def test_first_is_always_a_ticket_that_waits() -> None:
    waiters = Waiters()
    tickets = [ticket(number) for number in range(4)]
    for one in tickets:
        waiters.add(one)
    waiters.remove(tickets[1])
    waiters.remove(tickets[0])
    assert waiters.first is tickets[2]


async def test_depth_and_cost_count_those_that_wait() -> None:
    waiters = Waiters()
    tickets = [ticket(number, cost=cost) for number, cost in enumerate((1.1, 2.2, 3.3))]
    for one in tickets:
        waiters.add(one)
    assert waiters.depth == 3
    assert waiters.cost == pytest.approx(6.6)
    assert waiters.cost_before(Ticket(1)) == 1.1
    for one in tickets:
        waiters.remove(one)
        waiters.remove(one)
    assert (waiters.depth, waiters.cost) == (0, 0.0)


async def test_crowd_that_left_is_not_kept_behind_one_that_waits() -> None:
    waiters = Waiters()
    waiters.add(ticket(0))
    crowd = [ticket(number) for number in range(1, 1000)]
    for one in crowd:
        waiters.add(one)
    for one in crowd:
        waiters.remove(one)
    alive = [weakref.ref(one.is_present) for one in crowd]
    del crowd, one
    waiters.add(ticket(1000))
    gc.collect()
    assert sum(reference() is not None for reference in alive) <= 18
