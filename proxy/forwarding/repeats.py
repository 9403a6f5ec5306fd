"""No doubles: a request that comes again after its answer was lost is not sent again.

A request is looked up when its body has come, before it is admitted: it joins a flight, gets a kept
answer, is refused as `in-doubt` or `key-reused`, or is sent by its own flight (flights.py).
rules/repeats.py decides which requests are the same and what is kept; store/repeats.py keeps it.

A caller that joins keeps its own deadline: it is refused if the flight is not sent by then. If the
flight was given up earlier, the caller gets its own one.

Invariant: nothing waits between the look-up that finds nothing and the start of the flight.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from proxy.clock import Clock
from proxy.forwarding.attempts import PendingRequest
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.flights import CLAIM_SECONDS, Flight, Flights, record_of
from proxy.forwarding.sending import Sender
from proxy.http.client import Client
from proxy.http.messages import Answer
from proxy.http.received import Response
from proxy.problems import Problem, draining
from proxy.rules.repeats import (
    SAFE_METHODS,
    Digests,
    InDoubt,
    KeptAnswer,
    Record,
    UnderWay,
    is_reused,
)
from proxy.settings import Settings
from proxy.store.repeats import RepeatStore
from proxy.telemetry.metrics import Metrics

_POLL: Final = 0.25  # seconds between two looks at what another replica does


class Repeats:
    """Recognises requests that were sent before, and answers them without another send."""

    def __init__(  # noqa: PLR0913 -- the parts it works with, each by name
        self,
        settings: Settings,
        *,
        api: Client,
        store: RepeatStore,
        clock: Clock,
        drain: Drain,
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        self._flights = Flights(settings, api=api, store=store, clock=clock, spawn=spawn)
        self._store = store
        self._clock = clock
        self._drain = drain
        self._metrics = metrics
        self._rules = settings.repeats

    def __repr__(self) -> str:
        return f"<Repeats: {self._flights}>"

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on."""
        self._rules = settings.repeats
        self._flights.apply(settings)
        self._store.apply(settings.repeats)

    @property
    def under_way(self) -> int:
        """How many answers are still read for callers that left."""
        return self._flights.without_callers

    def concern(self, method: str, *, paced: bool) -> bool:
        """True if requests of this method and route are recognised when they come again."""
        return paced and self._rules.window > 0 and method not in SAFE_METHODS

    def answering(self, pending: PendingRequest, sender: Sender, digests: Digests) -> "Answering":
        """Return the block that delivers the request's answer, of this send or an earlier one."""
        return Answering(self, pending, sender, digests)

    async def find_answer(
        self, pending: PendingRequest, sender: Sender, digests: Digests
    ) -> tuple[Answer | Response, Flight | None]:
        """Return the answer, and the flight that the caller leaves once it has it.

        Raises a Problem when there is no answer.
        """
        exchange = pending.exchange
        while True:
            found = await self._look_up(pending, digests)
            if isinstance(found, KeptAnswer):
                kept = Answer(found.status, found.reason, list(found.fields), found.body)
                return _marked(kept), None
            flight = self._flights.start(pending, sender, digests) if found is None else found
            self._flights.join(flight, exchange)
            try:
                answer = await self._answer(flight, exchange)
            except BaseException:
                self._flights.leave(flight, exchange, is_delivered=False)
                raise
            if answer is not None and exchange.request.is_present():
                return answer if found is None else _marked(answer), flight
            self._flights.leave(flight, exchange, is_delivered=False)
            if answer is not None:
                raise ConnectionResetError("the caller left")

    async def leave(self, flight: Flight, exchange: Exchange, *, has_answer: bool) -> None:
        """Let a caller go; it `has_answer` if the whole of one was written for it."""
        is_delivered = False
        try:
            if has_answer:
                await exchange.request.flushed()  # the caller may leave before it has it all
                is_delivered = True
        finally:
            self._flights.leave(flight, exchange, is_delivered=is_delivered)

    async def _look_up(
        self, pending: PendingRequest, digests: Digests
    ) -> Flight | KeptAnswer | None:
        """Return the flight to join or the answer to give again; None if it is to be sent."""
        label = pending.account.label
        while True:
            flight, record = self._flights.find(digests), None
            if flight is None:
                record = await self._find(pending.exchange, digests)
                flight = self._flights.find(digests)  # one may have started meanwhile
            if flight is not None:
                if flight.digests.sameness != digests.sameness:
                    raise self._reused(label)
                self._metrics.repeated(label, "joined")
                return flight
            if record is None:
                return None
            if is_reused(record, digests):
                raise self._reused(label)
            match record.state:
                case KeptAnswer() as kept:
                    self._metrics.repeated(label, "replayed")
                    return kept
                case InDoubt():
                    raise self._in_doubt(label, record)
                case UnderWay(is_sent):
                    await self._wait_for_replica(pending.exchange, label, record, is_sent=is_sent)

    async def _find(self, exchange: Exchange, digests: Digests) -> Record | None:
        claim = None
        if digests.key is not None:
            until = self._clock.wall() + CLAIM_SECONDS
            claim = record_of(exchange, digests, UnderWay(is_sent=False), until=until)
        with exchange.spending("queue"):
            return await self._store.find(digests.name, claim)

    async def _wait_for_replica(
        self, exchange: Exchange, label: str, record: Record, *, is_sent: bool
    ) -> None:
        """Wait a little, so that the replica that handles the request may answer it."""
        is_draining = self._drain.has_begun
        if is_draining or exchange.may_wait <= 0:
            if is_sent:
                raise self._in_doubt(label, record)
            if is_draining:
                raise draining()
            raise Problem(
                "wait-expired", "The same request is already waiting.", retry_after=CLAIM_SECONDS
            )
        with exchange.spending("queue"):
            await self._clock.sleep_until(self._clock.monotonic() + _POLL)

    async def _answer(self, flight: Flight, exchange: Exchange) -> Answer | Response | None:
        """Wait for the flight; None if it ended unsent and this caller can wait longer.

        A joined caller waits as if it were in the queue.
        """
        if flight.exchange is not exchange:
            await self._wait_joined(flight, exchange)
        try:
            result = await asyncio.shield(flight.done)
        except asyncio.CancelledError:
            if _is_cancelled() or not exchange.request.is_present():
                raise
            self._look_again_after(flight)  # it was given up in the step in which this one joined
            return None
        if flight.exchange is not exchange and _may_wait_on(flight, exchange):
            self._flights.forget(flight)
            return None
        if isinstance(result, Problem):
            raise result.anew()
        if isinstance(result, Response):
            if flight.is_taken:
                raise self._doubt_about(flight)
            flight.is_taken = True
        return result

    def _look_again_after(self, flight: Flight) -> None:
        """Forget a flight that was given up; raises the Problem `in-doubt` if it was sent."""
        if flight.is_sent:
            raise self._doubt_about(flight)
        self._flights.forget(flight)

    async def _wait_joined(self, flight: Flight, exchange: Exchange) -> None:
        """Wait for a flight, but no longer than this caller may wait for the send."""
        ends = self._clock.monotonic() + exchange.may_wait
        with exchange.spending("queue"):
            while not flight.done.done():
                now = self._clock.monotonic()
                if now >= ends and not flight.is_sent:
                    raise Problem(
                        "wait-expired",
                        f"The request that it joined was not sent within {exchange.limit:.1f} s.",
                        retry_after=max(CLAIM_SECONDS, flight.pending.queue.holds.named_left()),
                    )
                await self._wait_until(max(ends, now + _POLL), flight)

    async def _wait_until(self, moment: float, flight: Flight) -> None:
        """Wait until that moment (monotonic), or until the flight is over."""
        woken = asyncio.Event()
        timer = self._clock.call_at(moment, woken.set)

        def wake(_: object) -> None:
            woken.set()

        flight.done.add_done_callback(wake)
        try:
            await woken.wait()
        finally:
            timer.cancel()
            flight.done.remove_done_callback(wake)

    def _doubt_about(self, flight: Flight) -> Problem:
        record = flight.record(InDoubt(), seconds=self._rules.window, now=self._clock.wall())
        return self._in_doubt(flight.owner.label, record)

    def _in_doubt(self, label: str, record: Record) -> Problem:
        self._metrics.repeated(label, "in_doubt")
        return Problem(
            "in-doubt",
            "An equal request was sent and its answer was lost; it may have been carried out."
            " Look for its result before you send it again with another Idempotency-Key.",
            fields={
                "first_request_id": record.request_id,
                "sent_at": round(record.sent_at, 3),
                "until": round(record.until, 3),
            },
        )

    def _reused(self, label: str) -> Problem:
        self._metrics.repeated(label, "reused")
        return Problem("key-reused", "Another request was sent with this Idempotency-Key.")


class Answering:
    """A block that delivers an answer: delivered if it succeeds and all of the answer has left.

    Every send on a paced route passes here; a generator would cost it several times as much.
    """

    __slots__ = ("_digests", "_flight", "_pending", "_repeats", "_sender")

    def __init__(
        self, repeats: Repeats, pending: PendingRequest, sender: Sender, digests: Digests
    ) -> None:
        self._repeats = repeats
        self._pending = pending
        self._sender = sender
        self._digests = digests
        self._flight: Flight | None = None

    async def __aenter__(self) -> Answer | Response:
        answer, self._flight = await self._repeats.find_answer(
            self._pending, self._sender, self._digests
        )
        return answer

    async def __aexit__(
        self, error: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._flight is not None:
            exchange = self._pending.exchange
            has_answer = error is None and not exchange.is_cut
            await self._repeats.leave(self._flight, exchange, has_answer=has_answer)


def _is_cancelled() -> bool:
    """True if the running task is cancelled.

    The code that is cancelled must not keep the task: the task keeps the exception, the exception
    the frame, so that would be a reference cycle.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _may_wait_on(flight: Flight, exchange: Exchange) -> bool:
    """True if a flight was given up unsent, and this caller has more time than the flight's had."""
    first = flight.exchange
    had_less = first.may_wait < _POLL or first.limit < exchange.limit
    return not flight.is_sent and had_less and exchange.may_wait > max(first.may_wait, 0.0)


def _marked(answer: Answer | Response) -> Answer | Response:
    """Mark an answer as that of an earlier send; one that is streamed has no room for a mark."""
    if isinstance(answer, Response):
        return answer
    return replace(answer, fields=[*answer.fields, ("Idempotency-Replayed", "true")])
