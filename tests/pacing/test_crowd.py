"""A crowd at one queue: all that are admitted are served, and the refused come back in order."""

import asyncio

import pytest

from proxy.pacing.slot import Answered, Sent
from proxy.problems import Problem
from proxy.settings import Pacing
from tests.kit.pacing import Bench, bench, wait_of

LATE = 0.004  # seconds by which each send leaves after its slot came


class Crowd:
    """Callers that obey Retry-After, at an API whose answers take a while."""

    def __init__(self, b: Bench, *, limit: float, answer: float = 0.0) -> None:
        self._bench = b
        self._limit = limit
        self._answer = answer
        self.sent: list[float] = []
        self.tries = 0
        self.expired = 0

    async def call(self) -> None:
        """Ask until it is served."""
        while True:
            self.tries += 1
            problem = await self._try()
            if problem is None:
                return
            self.expired += problem.name == "wait-expired"
            assert problem.retry_after is not None
            await self._sleep(problem.retry_after)

    async def _try(self) -> Problem | None:
        b, queue = self._bench, self._bench.queue()
        ticket, wait = b.ticket(), wait_of(self._limit, b.now)
        try:
            b.accounts.waiting.admit(queue, ticket, wait)
            slot = await b.accounts.waiting.slot(queue, ticket, wait)
        except Problem as problem:
            return problem
        assert slot is not None
        await self._sleep(LATE)
        slot.report(Sent(b.now))
        self.sent.append(b.now)
        await self._sleep(self._answer)
        slot.report(Answered())
        return None

    async def _sleep(self, seconds: float) -> None:
        await self._bench.clock.sleep_until(self._bench.now + seconds)


async def served(crowd: Crowd, b: Bench, callers: int) -> None:
    """Let so many callers come at one moment, and wait until all are served."""
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(crowd.call()) for _ in range(callers)]
        while not all(task.done() for task in waiting):
            await b.clock.advance(0.25)


@pytest.mark.parametrize(("limit", "callers"), [(15.0, 31), (5.0, 14), (60.0, 130)])
async def test_no_admitted_request_expires(limit: float, callers: int) -> None:
    """Each send is a little late, and the next one counts from it."""
    async with bench() as b:
        crowd = Crowd(b, limit=limit)
        await served(crowd, b, callers)
        assert len(crowd.sent) == callers
        assert crowd.expired == 0


async def test_refused_callers_that_obey_need_few_tries_and_leave_no_hole() -> None:
    """300 at a place for 30: each interval has its send, although most were refused once."""
    async with bench() as b:
        crowd = Crowd(b, limit=15.0)
        await served(crowd, b, 300)
        assert crowd.tries <= 3 * 300
        assert crowd.expired == 0
        span = crowd.sent[-1] - crowd.sent[0]
        assert span <= 1.1 * 0.5 * 299


async def test_a_slow_api_makes_no_caller_wait_for_a_refusal() -> None:
    """It takes 8 s for an answer; eight requests are in flight, so one a second is sent."""
    async with bench(Pacing()) as b:
        crowd = Crowd(b, limit=3600.0, answer=8.0)
        await served(crowd, b, 40)
        assert (crowd.tries, crowd.expired) == (40, 0)


async def test_once_answers_are_slow_the_prediction_knows() -> None:
    """Nobody is admitted for a time in which the answers of the others do not come."""
    async with bench() as b:
        crowd = Crowd(b, limit=15.0, answer=8.0)
        await served(crowd, b, 9)
        crowd.tries = crowd.expired = 0
        await served(crowd, b, 40)
        assert crowd.expired == 0
