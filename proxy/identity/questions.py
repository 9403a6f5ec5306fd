"""Questions about tokens, until they are answered: which of them may be asked, and when.

Theory of operation. A question waits for a place (`rules/whoami.py`: `Places`, `Pace`), is then
asked in its own task, and ends with an outcome for all requests that wait for it.

Invariants. One question per token. A question ends at most `longest` seconds after it began,
whatever the API does. A question without waiting requests that is not under way is given up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from proxy.clock import Clock
from proxy.identity.findings import Denied
from proxy.identity.issued_tokens import Owner
from proxy.rules.whoami import LONGEST_WAIT, UNDER_WAY, Pace, Places

Outcome = Owner | Denied | None


class Question:
    """A question about one token; `is_own` for a managed token, `is_again` for an entry due."""

    def __init__(
        self, token: str, token_hash: bytes, *, deadline: float, is_own: bool, is_again: bool
    ) -> None:
        self.token = token
        self.token_hash = token_hash
        self.deadline = deadline
        self.is_own = is_own
        self.is_again = is_again
        self.waiters = int(is_again)  # the table waits, and has no need to hurry
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Outcome) -> None:
        """Give the outcome to all that wait."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Questions:
    """Asks questions by `find_out`, while `may_ask` allows it."""

    def __init__(
        self,
        find_out: Callable[[Question], Awaitable[Outcome]],
        may_ask: Callable[[], bool],
        *,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.longest = LONGEST_WAIT  # seconds that one may take
        self._find_out = find_out
        self._may_ask = may_ask
        self._clock = clock
        self._spawn = spawn
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_pump_due = False
        self._pace = Pace()
        self._places: Places[Question] = Places()
        self._questions: dict[bytes, Question] = {}

    def about(self, token_hash: bytes) -> Question | None:
        """Return the question about that token, if there is one."""
        return self._questions.get(token_hash)

    def begin(
        self, token: str, token_hash: bytes, peer: str, *, is_own: bool, is_again: bool
    ) -> Question | None:
        """Let a question wait for its place; None if the API is not asked, or there is no room."""
        if not self._may_ask():
            return None
        now = self._clock.monotonic()
        question = Question(
            token, token_hash, deadline=now + self.longest, is_own=is_own, is_again=is_again
        )
        leaving = self._places.add(peer, question)
        if leaving is question:
            return None
        if leaving is not None:
            self._end(leaving, None)
        self._questions[token_hash] = question
        self._clock.call_at(now + min(LONGEST_WAIT, self.longest), lambda: self._give_up(question))
        self._pump()
        return question

    async def outcome(self, question: Question) -> Outcome:
        """Wait for the outcome of a question; None also if it is given up."""
        question.waiters += 1
        try:
            return await asyncio.shield(question.outcome)
        finally:
            question.waiters -= 1
            if not question.waiters:
                self._give_up(question)

    def take_back(self) -> None:
        """Note that a question under way needed no call of the API."""
        self._pace.take_back()

    def close(self) -> None:
        """End all questions, with no outcome."""
        for task in self._tasks:
            task.cancel()
        for question in self._questions.values():
            question.end(None)

    def _give_up(self, question: Question) -> None:
        """End a question that is not under way yet."""
        if self._places.discard(question):
            self._end(question, None)

    def _end(self, question: Question, outcome: Outcome) -> None:
        if self._questions.get(question.token_hash) is question:
            del self._questions[question.token_hash]
        question.end(outcome)

    def _pump(self) -> None:
        """Ask the questions that may be asked now."""
        while len(self._places) and len(self._tasks) < UNDER_WAY:
            if not self._may_ask():
                self._give_up(next(iter(self._places)))
                continue
            now = self._clock.monotonic()
            if now < self._pace.next_at():
                self._pump_at(self._pace.next_at())
                return
            self._pace.note(now)
            task = self._spawn(self._run(self._places.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _pump_at(self, when: float) -> None:
        def pump() -> None:
            self._is_pump_due = False
            self._pump()

        if not self._is_pump_due:
            self._is_pump_due = True
            self._clock.call_at(when, pump)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._pump()

    async def _run(self, question: Question) -> None:
        outcome: Outcome = None
        try:
            outcome = await self._find_out(question)
        finally:
            self._end(question, outcome)
