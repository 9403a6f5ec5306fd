"""One pace for several replicas: they take turns on a line.

A replica whose line has waiters asks once and is queued; whoever has sent reports it, and the
script (turn.lua) passes the turn on and tells the next one. So a send costs one round trip where
replicas contend and two where one is alone, and no waiter but the first in a line costs any. A turn
belongs to the line, not to a caller: if the first in line hangs up, the next one uses it.

While the store is down each replica spaces its own sends by interval x replicas, or refuses them.
When it is back every line keeps its distance for one interval first, so there is no burst.

Moments come from the server's clock only and reach us as "so long from now". Keys hold hashes.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from importlib.resources import files
from math import inf
from secrets import token_hex
from typing import Any, Final
from weakref import WeakSet

from redis.exceptions import RedisError

from proxy.clock import Clock, Timer
from proxy.metrics import Metrics
from proxy.store import SharedLine
from proxy.store.connection import PREFIX, PROBE, Connection, StoreDown

_LEASE: Final = 2.0  # seconds a turn may stay unused after it is due, before others take it
_RENEW_AT: Final = 0.5  # of the lease
_LOOK_AGAIN: Final = 0.5  # seconds after the expected turn, when no word came
_HEAR: Final = 0.2  # seconds; how soon the listener notices that the store is down
_KEEP_MS: Final = 600_000  # how long the state outlives what it says
_SCRIPT: Final = files("proxy.store").joinpath("turn.lua").read_text(encoding="utf-8")


class _Phase(Enum):
    IDLE = auto()  # nobody waits here
    BUSY = auto()  # a command is under way
    QUEUED = auto()  # others go first
    HOLDING = auto()  # our turn


@dataclass(slots=True)
class _Place:
    """Where one of our lines stands in the store."""

    line: SharedLine
    phase: _Phase = _Phase.IDLE
    timer: Timer | None = None
    unreported: float | None = None  # the span of a send that happened while a command ran

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the script answers; seconds from now."""

    is_ours: bool
    wait: float
    wanting: int
    ahead: int


class SharedTurns:
    """Turns shared with the other replicas."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._me = token_hex(6)
        self._script = connection.redis.register_script(_SCRIPT)
        self._lines: WeakSet[SharedLine] = WeakSet()
        self._places: dict[tuple[str, str], _Place] = {}
        connection.went_down.append(self._go_alone)
        connection.came_back.append(self._rejoin)

    @property
    def spread(self) -> int:
        """The number of replicas while the store is down, else 1."""
        return 1 if self._connection.is_up else self._connection.settings.replicas

    @property
    def is_refusing(self) -> bool:
        """Tell whether the store is down and `on_failure` says to refuse."""
        connection = self._connection
        return not connection.is_up and connection.settings.on_failure == "reject"

    # What lines tell.

    def opened(self, line: SharedLine) -> None:
        """Take a new line in."""
        self._lines.add(line)
        line.turn_at = inf if self._connection.is_up else -inf

    def wanted(self, line: SharedLine) -> None:
        """Ask for a turn, unless that has been done."""
        if self._connection.is_up:
            place = self._places.setdefault((line.key, line.route), _Place(line))
            if place.phase is _Phase.IDLE:
                self._start(place, "ask", line.interval)

    def used(self, line: SharedLine, cost: float) -> None:
        """Report a send and, if somebody waits, ask for the next turn in the same breath."""
        if not self._connection.is_up:
            self._metrics.store_bypassed()
            return
        place = self._places.setdefault((line.key, line.route), _Place(line))
        span = cost * line.interval
        if place.phase is _Phase.BUSY:
            place.unreported = span
        else:
            self._start(place, "done", span)

    def unused(self, line: SharedLine) -> None:
        """Give up a turn, or a place in the queue."""
        place = self._places.get((line.key, line.route))
        if place is not None and place.phase in {_Phase.HOLDING, _Phase.QUEUED}:
            self._start(place, "done", 0.0)

    def held(self, key: str, seconds: float) -> None:
        """Have all replicas obey a hold."""
        if self._connection.is_up:
            self._spawn(self._hold(key, seconds))

    # Commands.

    def _start(self, place: _Place, op: str, span: float) -> None:
        place.phase = _Phase.BUSY
        place.line.turn_at = inf
        place.cancel_timer()
        self._spawn(self._run(place, op, span))

    async def _run(self, place: _Place, op: str, span: float) -> None:
        """Run one command for a line, then whatever became due meanwhile."""
        line = place.line
        again = op == "done" and line.has_waiters()
        try:
            standing = await self._call(line, op, span, again=again)
        except StoreDown:
            return  # the lines go on by themselves
        line.contenders = max(1, standing.wanting)
        line.turn_hint = self._clock.monotonic() + standing.wait + standing.ahead * line.interval
        if place.unreported is not None:
            span, place.unreported = place.unreported, None
            self._start(place, "done", span)
        elif standing.is_ours:
            self._take_turn(place, standing.wait)
        elif op == "ask" or again:
            self._queue(place)
        else:
            place.phase = _Phase.IDLE
        self._settle(place)

    def _settle(self, place: _Place) -> None:
        """Ask if somebody came while a command ran; leave if everybody went."""
        if place.line.has_waiters():
            self.wanted(place.line)
        elif place.phase is _Phase.IDLE:
            self._places.pop((place.line.key, place.line.route), None)
        else:
            self.unused(place.line)

    async def _hold(self, key: str, seconds: float) -> None:
        try:
            await self._script_call(key, "hold", "", span=seconds, again=False)
        except StoreDown:
            return  # this replica obeys it; the others will be told by a 429 of their own

    async def _call(self, line: SharedLine, op: str, span: float, *, again: bool) -> _Standing:
        answer = await self._script_call(line.key, op, line.route, span=span, again=again)
        mine, wait, wanting, ahead = map(int, answer)
        return _Standing(bool(mine), wait / 1e6, wanting, ahead)

    async def _script_call(
        self, key: str, op: str, route: str, *, span: float, again: bool
    ) -> list[Any]:
        arguments: list[str | int] = [
            op,
            route,
            self._me,
            _us(span),
            _us(_LEASE),
            int(again),
            PREFIX,
            _KEEP_MS,
        ]

        async def command() -> list[Any]:
            answer: list[Any] = await self._script(keys=[key], args=arguments)
            return answer

        return await self._connection.call(command)

    # Turns.

    def _take_turn(self, place: _Place, wait: float) -> None:
        at = self._clock.monotonic() + wait
        place.phase = _Phase.HOLDING
        place.line.turn_at = place.line.turn_hint = at
        self._look_at(place, at + _LEASE * _RENEW_AT)
        place.line.turn_changed()

    def _queue(self, place: _Place) -> None:
        place.phase = _Phase.QUEUED
        place.line.turn_at = inf
        self._look_at(place, place.line.turn_hint + _LOOK_AGAIN)

    def _look_at(self, place: _Place, at: float) -> None:
        place.cancel_timer()
        place.timer = self._clock.call_at(at, lambda: self._spawn(self._look_again(place)))

    async def _look_again(self, place: _Place) -> None:
        """Keep a turn that is not used yet, or ask what became of one that is overdue."""
        line, phase = place.line, place.phase
        try:
            standing = await self._call(line, "ask", line.interval, again=False)
        except StoreDown:
            return
        if place.phase is not phase or phase not in {_Phase.HOLDING, _Phase.QUEUED}:
            return  # it was used, or given up, while we asked
        if not standing.is_ours:
            line.turn_hint = self._clock.monotonic() + (standing.ahead + 1) * line.interval
            self._queue(place)
        elif phase is _Phase.QUEUED:
            self._take_turn(place, standing.wait)
        else:
            at = self._clock.monotonic() + standing.wait
            line.turn_at = max(line.turn_at, at) if standing.wait > 0 else line.turn_at
            self._look_at(place, at + _LEASE * _RENEW_AT)

    # News from the others.

    async def run(self) -> None:
        """Listen to the other replicas until cancelled, through failures of the store."""
        while True:
            if self._connection.is_up:
                try:
                    await self._listen()
                except (RedisError, OSError, TimeoutError) as error:
                    self._connection.fail(type(error).__name__)
            await self._clock.sleep_until(self._clock.monotonic() + PROBE / 4)

    async def _listen(self) -> None:
        async with self._connection.news(PREFIX + self._me, PREFIX + "holds") as news:
            while self._connection.is_up:
                message = await news.get_message(timeout=_HEAR)
                if message is not None:
                    self._hear(message["channel"].decode(), message["data"].decode())

    def _hear(self, channel: str, text: str) -> None:
        if channel == PREFIX + "holds":
            who, key, wait = text.split(" ")
            if who != self._me:
                for line in list(self._lines):
                    if line.key == key:
                        line.silence(int(wait) / 1e6)
            return
        key, route, wait = text.split(" ")
        place = self._places.get((key, route))
        if place is not None and place.phase is _Phase.QUEUED:
            self._take_turn(place, int(wait) / 1e6)

    # Failure and return.

    def _go_alone(self) -> None:
        for place in self._places.values():
            place.cancel_timer()
        self._places.clear()
        for line in list(self._lines):
            line.turn_at, line.contenders = -inf, 1
            line.turn_changed()

    def _rejoin(self) -> None:
        for line in list(self._lines):
            line.turn_at = inf
            line.keep_distance()
            if line.has_waiters():
                self.wanted(line)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
