"""How long a newcomer would wait, and whom it would push out of time."""

import random

import pytest

from proxy.pacing.prediction import predicted_wait, pushes_out
from proxy.pacing.slot import Answered
from proxy.rules.pace import fits
from proxy.settings import Pacing
from tests.kit.pacing import bench


@pytest.mark.parametrize("seed", range(20))
async def test_newcomer_pushes_out_the_waiters_that_its_cost_makes_late(seed: int) -> None:
    """Whatever some that left wanted; each waiter is looked at only if one could be late."""
    chance = random.Random(seed)  # noqa: S311 -- no secret
    async with bench(Pacing(interval=1.0)) as b:
        queue = b.queue()
        waiting = [
            b.join(queue, limit=chance.uniform(5.0, 40.0), caller=chance.choice("abc"))
            for _ in range(15)
        ]
        await b.clock.advance(0)
        b.use(waiting.pop(0))
        for one in chance.sample(waiting, 5):
            one.cancel()
        await b.clock.advance(0)
        for caller in "abcd":
            newcomer = b.ticket(caller=caller)
            now, waiters = b.now, queue.waiters
            due = predicted_wait(queue, newcomer, now) - waiters.cost_before(newcomer)
            late = [
                deadline
                for deadline, cost in waiters.cost_at_deadlines(newcomer)
                if fits(due + cost, deadline - now) and not fits(due + cost + 1, deadline - now)
            ]
            assert pushes_out(queue, newcomer, now) is bool(late)
        for one in waiting:
            one.cancel()


@pytest.mark.parametrize(
    ("room", "late", "predicted"), [(2, 1, 100.0), (1, 1, 60.0 * 201), (2, 2, 60.0 * 101)]
)
async def test_a_late_answer_tells_of_the_others_only_if_no_room_is_left_beside_it(
    room: int, late: int, predicted: float
) -> None:
    """Some are a minute late and 200 wait; with room beside them they are sent at the pace."""
    async with bench(Pacing(interval=0.5, max_in_flight=room)) as b:
        slots = [b.send(await b.get(b.queue()))]
        for _ in range(1, late):
            await b.clock.advance(0.5)
            slots.append(b.send(await b.get(b.queue())))
        waiting = [b.join(b.queue(), limit=1e6) for _ in range(200)]
        await b.clock.advance(0)
        b.clock.stall(70.0 - b.now)
        assert b.predicted_wait(b.ticket()) == pytest.approx(predicted)
        for one in waiting:
            one.cancel()
        for slot in slots:
            slot.report(Answered())
