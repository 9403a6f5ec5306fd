"""Flights: sends that go on when their caller leaves.

Theory of operation. An unsafe request on a paced route is sent by a flight: a separate task, for
which one or more callers wait. If all of them leave before the request is sent, the flight ends. If
they leave later, the flight reads the answer to its end, for at most `upstream.response_timeout`
unless another caller joins it. Then rules/repeats.py decides what to keep of it.

Invariants: one replica has at most one flight for a key. Only a sent flight outlives its callers.
Every flight is settled once, when it is over and no caller is left. The mark by which other
replicas see a flight is removed with the flight, or replaced by the record that is kept of it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Final

from proxy.clock import Clock, Timer
from proxy.forwarding.attempts import PendingRequest
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.outcomes import share_outcome
from proxy.forwarding.relay import read_or_keep
from proxy.forwarding.sending import Sender
from proxy.http.client import Client
from proxy.http.messages import Answer
from proxy.http.received import Response
from proxy.problems import Problem
from proxy.rules.repeats import (
    MAX_ANSWER,
    Digests,
    Ended,
    KeptAnswer,
    Record,
    State,
    UnderWay,
    kept_of,
)
from proxy.settings import Settings
from proxy.store.repeats import Owner, RepeatStore

CLAIM_SECONDS: Final = 10.0  # the claim of a dead replica has expired by then
_RENEWAL: Final = 3.0  # seconds after which a claim is renewed


@dataclass(slots=True, eq=False)
class Flight:
    """One request on its way, and its callers; `done` has the answer, or the Problem.

    `marked` holds the names under which other replicas see it. `is_lost` says that all its callers
    left before the answer came: its record counts as not delivered, even if another caller came
    later.
    """

    pending: PendingRequest
    digests: Digests
    owner: Owner
    done: "asyncio.Future[Answer | Response | Problem]"
    callers: dict[int, Exchange] = field(default_factory=dict)
    marked: set[bytes] = field(default_factory=set)
    task: "asyncio.Task[None] | None" = None
    timer: Timer | None = None
    is_lost: bool = False
    is_delivered: bool = False
    is_taken: bool = False

    @property
    def exchange(self) -> Exchange:
        """The exchange of the first caller."""
        return self.pending.exchange

    @property
    def is_sent(self) -> bool:
        """True if the API may have carried it out."""
        return self.exchange.sent_at is not None

    def has_callers(self) -> bool:
        """True if a caller is still connected."""
        return any(exchange.request.is_present() for exchange in self.callers.values())

    def record(self, state: State, *, seconds: float, now: float) -> Record:
        """Return the record to keep of it, at the wall time `now`."""
        return record_of(self.exchange, self.digests, state, until=now + seconds)


def record_of(exchange: Exchange, digests: Digests, state: State, *, until: float) -> Record:
    """Return the record to keep of a request; `until` is wall time."""
    return Record(
        sameness=digests.sameness,
        request_id=exchange.id,
        sent_at=exchange.sent_at or 0.0,
        until=until,
        state=state,
    )


class Flights:
    """The flights of this replica."""

    def __init__(
        self,
        settings: Settings,
        *,
        api: Client,
        store: RepeatStore,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        self._api = api
        self._store = store
        self._clock = clock
        self._spawn = spawn
        self._by_key: dict[bytes, Flight] = {}
        self._abandoned: dict[bytes, Flight] = {}  # by sameness; the newest, if there are more
        self._reading: set[Flight] = set()  # all whose callers left
        self.apply(settings)

    def __repr__(self) -> str:
        return f"<Flights: {len(self._reading)} without callers>"

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on."""
        self._rules = settings.repeats
        self._response_timeout = settings.upstream.response_timeout

    @property
    def without_callers(self) -> int:
        """How many answers are still read for callers that left."""
        return len(self._reading)

    def find(self, digests: Digests) -> Flight | None:
        """Return the flight that a request joins: with a key any, else one without callers."""
        if digests.key is None:
            return self._abandoned.get(digests.sameness)
        return self._by_key.get(digests.key)

    def start(self, pending: PendingRequest, sender: Sender, digests: Digests) -> Flight:
        """Start the flight of a request."""
        owner = Owner(pending.account.allowance.key, pending.account.label)
        done = asyncio.get_running_loop().create_future()
        flight = Flight(pending, digests, owner, done)
        # What refers back to the flight is the task's alone, so that both go when the task is over.
        watched = pending._replace(
            is_present=flight.has_callers, on_sent=lambda: self._mark(flight)
        )
        if digests.key is not None:
            self._by_key[digests.key] = flight
            self._renew(flight)
        flight.task = self._spawn(self._fly(flight, watched, sender))
        return flight

    def join(self, flight: Flight, exchange: Exchange) -> None:
        """Let a caller wait for the flight, which then no longer reads for nobody."""
        flight.callers[id(exchange)] = exchange
        if flight in self._reading:
            self._reading.discard(flight)
            self._stop_timer(flight)
            if flight.digests.key is not None:
                self._renew(flight)

    def leave(self, flight: Flight, exchange: Exchange, *, is_delivered: bool) -> None:
        """Remove a caller, with its answer or without."""
        del flight.callers[id(exchange)]
        if is_delivered and not flight.is_lost:
            flight.is_delivered = True
        if flight.callers:
            return
        if flight.done.done():
            self._settle(flight)
        elif flight.is_sent:
            flight.is_lost = True
            self._abandoned[flight.digests.sameness] = flight
            self._reading.add(flight)
            self._mark(flight)
            self._call_later(flight, self._response_timeout, lambda: _cancel(flight))
        else:
            self.forget(flight)  # a new one may start before this one has ended
            _cancel(flight)

    async def _fly(self, flight: Flight, watched: PendingRequest, sender: Sender) -> None:
        try:
            await share_outcome(flight.done, self._answer(watched, sender))
        finally:
            if not flight.callers:
                self._settle(flight)

    async def _answer(self, watched: PendingRequest, sender: Sender) -> Answer | Response:
        answer = await sender.send(watched)
        if isinstance(answer, Response):
            return await read_or_keep(self._api, answer, MAX_ANSWER)
        return answer

    def _settle(self, flight: Flight) -> None:
        """Keep what repeats of a finished flight need."""
        failed = flight.done.cancelled() or flight.done.exception() is not None
        result = None if failed else flight.done.result()
        if isinstance(result, Response):
            result.release()
        if flight.is_sent or isinstance(result, Answer | Response):
            is_over = flight.is_delivered and flight.digests.key is None  # nothing is kept of it
            ended = _ended(result, is_delivered=flight.is_delivered, keeps_answer=not is_over)
            rules = self._rules
            for name, state, seconds in kept_of(
                ended, flight.digests, window=rules.window, keep=rules.keep
            ):
                flight.marked.discard(name)
                record = flight.record(state, seconds=seconds, now=self._clock.wall())
                record = replace(record, is_delivered=flight.is_delivered)
                self._store.put(flight.owner, name, record, seconds)
        self.forget(flight)

    def forget(self, flight: Flight) -> None:
        """Forget a flight here, and remove what other replicas see of it."""
        self._stop_timer(flight)
        for name in flight.marked:
            self._store.drop(name)
        flight.marked.clear()
        self._reading.discard(flight)
        key, sameness = flight.digests.key, flight.digests.sameness
        if key is not None and self._by_key.get(key) is flight:
            del self._by_key[key]
        if self._abandoned.get(sameness) is flight:
            del self._abandoned[sameness]

    # What other replicas see meanwhile

    def _mark(self, flight: Flight) -> None:
        """Tell other replicas that the flight is under way, and if it was sent."""
        if not self._store.is_shared:
            return
        names = set() if flight.digests.key is None else {flight.digests.key}
        seconds = CLAIM_SECONDS
        if flight.is_sent:
            seconds = self._response_timeout + self._rules.window
            if not flight.callers:
                names.add(flight.digests.sameness)
        flight.marked |= names
        state = UnderWay(is_sent=flight.is_sent)
        record = flight.record(state, seconds=seconds, now=self._clock.wall())
        for name in names:
            self._store.put(flight.owner, name, record, seconds)

    def _renew(self, flight: Flight) -> None:
        self._mark(flight)
        if self._store.is_shared:
            self._call_later(flight, _RENEWAL, lambda: self._renew(flight))

    def _call_later(self, flight: Flight, seconds: float, callback: Callable[[], None]) -> None:
        self._stop_timer(flight)
        flight.timer = self._clock.call_at(self._clock.monotonic() + seconds, callback)

    def _stop_timer(self, flight: Flight) -> None:
        if flight.timer is not None:
            flight.timer.cancel()
            flight.timer = None


def _ended(
    result: Answer | Response | Problem | None, *, is_delivered: bool, keeps_answer: bool
) -> Ended:
    match result:
        case Answer():
            kept = None
            if keeps_answer and len(result.body) <= MAX_ANSWER:
                kept = KeptAnswer.of(result.status, result.reason, result.fields, result.body)
            return Ended(status=result.status, answer=kept, is_delivered=is_delivered)
        case Response():
            return Ended(status=result.status, answer=None, is_delivered=is_delivered)
        case Problem() | None:
            return Ended(status=None, answer=None, is_delivered=is_delivered)


def _cancel(flight: Flight) -> None:
    task, flight.task = flight.task, None  # how it was cancelled refers back to the flight
    if task is not None:
        task.cancel()
