"""The order of tickets, and what is kept of those that left."""

import asyncio
import gc
import random
import weakref

import pytest

from proxy.pacing.slot import Ending, Ticket
from proxy.pacing.waiters import Waiters


def ticket(number: int, *, cost: float = 1.0, caller: str = "", weight: int = 1) -> Ticket:
    """Return a ticket with an offer; call it while a loop runs."""
    made = Ticket(number, cost=cost, is_present=lambda: number >= 0, caller=caller, weight=weight)
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
    assert waiters.cost_before(Ticket(4, caller="")) == pytest.approx(6.6)
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


# Turns between callers


def serve(waiters: Waiters) -> Ticket:
    """Give the next ticket its slot."""
    first = waiters.first
    assert first is not None
    waiters.remove(first)
    waiters.served(first)
    return first


def serve_all(waiters: Waiters) -> str:
    """Return the callers in the order in which they are served."""
    order = ""
    while waiters.first is not None:
        order += str(serve(waiters).caller)
    return order


async def test_callers_take_turns_and_each_goes_by_arrival() -> None:
    waiters = Waiters()
    for number, caller in enumerate("aaaabbc"):
        waiters.add(ticket(number, caller=caller))
    served = [serve(waiters) for _ in range(7)]
    assert "".join(str(one.caller) for one in served) == "abcabaa"
    of_a = [one.number for one in served if one.caller == "a"]
    assert of_a == sorted(of_a)


async def test_newcomer_waits_one_round_at_most() -> None:
    waiters = Waiters()
    for number in range(300):
        waiters.add(ticket(number, caller="ab"[number % 2]))
    for _ in range(101):
        serve(waiters)
    waiters.add(ticket(300, caller="c"))
    assert "c" in "".join(str(serve(waiters).caller) for _ in range(3))


async def test_weights_share_the_slots() -> None:
    waiters = Waiters()
    for number in range(400):
        caller = "ab"[number % 2]
        waiters.add(ticket(number, caller=caller, weight=3 if caller == "a" else 1))
    order = "".join(str(serve(waiters).caller) for _ in range(200))
    assert abs(order.count("a") - 150) <= 1


async def test_a_heavy_request_counts_for_as_much_as_it_costs() -> None:
    waiters = Waiters()
    for number in range(80):
        caller = "ab"[number % 2]
        waiters.add(ticket(number, caller=caller, cost=3.0 if caller == "a" else 1.0))
    order = "".join(str(serve(waiters).caller) for _ in range(40))
    assert abs(order.count("b") - 30) <= 1


async def test_caller_that_was_away_gains_nothing_by_it() -> None:
    """And one that comes back for each single request does not get every slot."""
    waiters = Waiters()
    for number in range(20):
        waiters.add(ticket(number, caller="a"))
    for _ in range(10):
        serve(waiters)
    waiters.add(ticket(20, caller="b"))
    order = ""
    for number in range(21, 29):
        served = serve(waiters)
        order += str(served.caller)
        if served.caller == "b":
            waiters.add(ticket(number, caller="b"))
    assert "bb" not in order
    assert order.count("a") >= 4


async def test_request_that_comes_back_goes_before_all_callers() -> None:
    waiters = Waiters()
    for number, caller in enumerate("abab"):
        waiters.add(ticket(number, caller=caller))
    again = serve(waiters)
    again.has_returned = True
    again.offer = asyncio.get_running_loop().create_future()
    waiters.add(again)
    assert waiters.first is again
    assert serve_all(waiters) == "abab"


async def test_a_request_that_came_back_waits_and_is_ended_like_the_others() -> None:
    waiters = Waiters()
    for number, caller in enumerate("ab"):
        waiters.add(ticket(number, caller=caller))
    again = serve(waiters)
    again.has_returned = True
    again.offer = asyncio.get_running_loop().create_future()
    waiters.add(again)
    assert {one.number for one in waiters} == {0, 1}
    assert waiters.oldest is again
    waiters.end(Ending.DRAINED)
    assert not any(one.is_waiting for one in waiters)


async def test_cost_before_a_newcomer_is_that_of_the_tickets_that_go_before_it() -> None:
    """For any mix of callers, weights and times, with costs of one."""
    for seed in range(200):
        chance = random.Random(seed)  # noqa: S311 -- no secret
        waiters = Waiters()
        weights = {caller: chance.choice([1, 1, 2, 5]) for caller in "abcd"}
        for number in range(chance.randrange(30)):
            caller = chance.choice("abc")
            waiters.add(ticket(number, caller=caller, weight=weights[caller]))
        for _ in range(chance.randrange(10)):
            if waiters.first is not None:
                serve(waiters)
        newcomer = chance.choice("abcd")
        made = ticket(100, caller=newcomer, weight=weights[newcomer])
        predicted = waiters.cost_before(made)
        waiters.add(made)
        before = 0
        while serve(waiters) is not made:
            before += 1
        assert predicted == before, seed


async def test_a_newcomer_delays_the_tickets_behind_it() -> None:
    waiters = Waiters()
    tickets = [ticket(number, caller=caller) for number, caller in enumerate("aaab")]
    for one in tickets:
        one.deadline = 10.0 + one.number
        waiters.add(one)
    delayed = list(waiters.cost_at_deadlines(Ticket(9, caller="c")))
    assert delayed == [(11.0, 2.0), (12.0, 3.0)]
    assert list(waiters.cost_at_deadlines(Ticket(9, caller="a"))) == []
    assert list(waiters.cost_at_deadlines(Ticket(9, caller="b"))) == [(12.0, 3.0)]


async def test_oldest_is_the_one_that_joined_first() -> None:
    waiters = Waiters()
    for number, (caller, joined) in enumerate([("a", 3.0), ("b", 1.0), ("b", 2.0)]):
        one = ticket(number, caller=caller)
        one.joined_at = joined
        waiters.add(one)
    oldest = waiters.oldest
    assert oldest is not None
    assert oldest.joined_at == 1.0


# Groups, which are sent as one


def members(numbers: range, group: object, *, caller: str = "") -> list[Ticket]:
    made = [ticket(number, caller=caller) for number in numbers]
    for one in made:
        one.group = group
    return made


async def test_group_costs_what_one_of_it_costs() -> None:
    """As long as any of it waits, whichever leaves first."""
    for order in ((0, 1, 2), (2, 1, 0)):
        waiters = Waiters()
        group = members(range(3), "g")
        for one in [*group, *members(range(3, 5), "h"), ticket(5)]:
            waiters.add(one)
        costs = [waiters.cost]
        for index in order:
            waiters.remove(group[index])
            costs.append(waiters.cost)
        assert costs == [3, 3, 3, 2]
        assert waiters.depth == 3


async def test_newcomer_of_a_group_goes_with_the_first_of_it() -> None:
    waiters = Waiters()
    for one in [ticket(0), ticket(1), *members(range(2, 4), "g"), ticket(4), ticket(5)]:
        waiters.add(one)
    newcomer = Ticket(6, caller="")
    assert waiters.cost_before(newcomer) == 5
    newcomer.group = "g"
    assert waiters.cost_before(newcomer) == 2
    newcomer.group = "h"
    assert waiters.cost_before(newcomer) == 5


async def test_newcomer_of_a_group_delays_nobody() -> None:
    """Another newcomer delays all that start later, a group once."""
    waiters = Waiters()
    for one in [*members(range(3), "g", caller="a"), ticket(3, caller="a"), ticket(4, caller="a")]:
        waiters.add(one)
    newcomer = Ticket(5, caller="a")
    newcomer.group = "g"
    assert list(waiters.cost_at_deadlines(newcomer)) == []
    other = Ticket(5, caller="b")
    assert [cost for _, cost in waiters.cost_at_deadlines(other)] == [1, 2]


async def test_one_that_was_taken_along_in_vain_has_its_place_by_arrival() -> None:
    """It has had no slot, so it does not go before the other callers."""
    waiters = Waiters()
    old = ticket(0, caller="a")
    old.joined_at = 1.0
    for one in [ticket(1, caller="a"), ticket(2, caller="b"), ticket(3, caller="a"), old]:
        waiters.add(one)
    assert [one.number for one in (serve(waiters) for _ in range(4))] == [0, 2, 1, 3]


async def test_what_came_back_and_left_again_costs_those_behind_it_nothing() -> None:
    waiters = Waiters()
    waiters.add(ticket(1))
    returned = ticket(0, cost=2.0)
    returned.had_slot = returned.has_returned = True
    waiters.add(returned)
    waiters.remove(returned)
    assert waiters.cost == 1.0
    assert waiters.cost_before(Ticket(2, caller="another")) == 1.0


async def test_a_newcomer_waits_for_as_many_rounds_of_another_caller_as_its_own_requests_take() -> (
    None
):
    """Its caller's request costs 4, so two of cost 2 go meanwhile, and one begins with it."""
    waiters = Waiters()
    for number in range(10):
        waiters.add(ticket(number, cost=2.0, caller="batch"))
    waiters.add(ticket(10, cost=4.0, caller="person"))
    assert waiters.cost_before(Ticket(11, caller="person")) == 4.0 + 3 * 2.0


async def test_those_whom_a_newcomer_delays_are_told_in_the_order_in_which_they_go() -> None:
    """A caller of weight 2 has two turns for each turn of another one."""
    waiters = Waiters()
    for number, (caller, weight) in enumerate([("heavy", 2)] * 4 + [("light", 1)] * 3):
        one = ticket(number, caller=caller, weight=weight)
        one.deadline = 100.0 + number
        waiters.add(one)
    delayed = waiters.cost_at_deadlines(Ticket(9, caller="newcomer"))
    assert list(delayed) == [(101.0, 2.0), (102.0, 3.0), (105.0, 4.0), (103.0, 5.0), (106.0, 6.0)]
