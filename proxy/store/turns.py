"""One pace for several replicas: they take turns on a queue.

A replica whose queue has waiters asks once and is queued; whoever has sent reports it, and the
script (turn.lua) passes the turn on and tells the next one. So a send costs one round trip where
replicas contend and two where one is alone, and only the first waiter of a queue costs any. A turn
belongs to the queue, not to a caller: if the first waiter hangs up, the next one uses it.

A turn is a lease: it ends some time after it could first be used, unless it is asked for again.
Who lost it without knowing, because the process stood still, does not use it.

While the store is down each replica spaces its own sends by interval x replicas, or refuses them.
When it is back every queue keeps its distance for one interval first, so there is no burst. A state
that was lost is noticed by whoever finds none; all say again what they knew of that account.

Moments come from the server's clock only and reach us as "so long from now". Keys hold hashes.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from importlib.resources import files
from secrets import token_hex
from typing import Any, Final
from weakref import WeakValueDictionary

from proxy.clock import Clock, Timer
from proxy.pacing.turns import FREE, Lease, SharedQueue
from proxy.store.connection import PREFIX, Connection, StoreDown
from proxy.telemetry.metrics import Metrics

_LEASE: Final = 2.0  # seconds a turn may stay unused after it is due, before others take it
_RENEW_AT: Final = 0.5  # of the lease
_LOOK_AGAIN: Final = 0.05  # seconds; the shortest pause before asking what became of a turn
_KEEP_MS: Final = 60_000  # how long the state outlives what it says
_SELF_TEST: Final = PREFIX + "{self-test}"
_SELF_TEST_MS: Final = 1_000
_ALL: Final = PREFIX + "all"
_SCRIPT: Final = files("proxy.store").joinpath("turn.lua").read_text(encoding="utf-8")

_MAX_DIGITS: Final = 20

_Name = tuple[str, str]  # key and route


class _Op(Enum):
    """What a queue may say to the script."""

    ASK = "ask"
    SENT = "sent"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class _Stamp:
    """Which operation on which state something comes from; a lost state begins anew."""

    born: int
    count: int

    def is_after(self, other: "_Stamp | None") -> bool:
        return other is None or other.born != self.born or other.count < self.count


@dataclass(frozen=True, slots=True)
class _LeaseMessage:
    """A turn we were told of: when it opens, and a moment after which it was given."""

    stamp: _Stamp
    at: float
    since: float


@dataclass(slots=True)
class _Seat:
    """Where one of our queues stands in the store, while it wants turns."""

    queue: SharedQueue
    is_ours: bool = False
    is_busy: bool = False  # a command is under way
    has_sent: bool = False  # while a command was under way: yet to be reported
    message: "_LeaseMessage | None" = None  # heard while a command was under way
    stamp: "_Stamp | None" = None  # of the last answer
    timer: Timer | None = None

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(frozen=True, slots=True)
class _LeaseStatus:
    """What the script answers; seconds from now."""

    is_ours: bool
    wait: float
    wanting: int
    ahead: int
    hold: float
    stamp: _Stamp

    @classmethod
    def of(cls, answer: list[Any]) -> "_LeaseStatus":
        mine, wait, wanting, ahead, hold, born, count = map(int, answer)
        return cls(bool(mine), wait / 1e6, wanting, ahead, hold / 1e6, _Stamp(born, count))


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
        self._queues: WeakValueDictionary[_Name, SharedQueue] = WeakValueDictionary()
        self._seats: dict[_Name, _Seat] = {}
        self._routes: set[str] = set()
        self._looking: set[_Name] = set()  # queues that wait to be told of a hold
        self._abandoned: dict[_Name, SharedQueue] = {}  # which the store may still think want turns
        self._is_shared = False
        connection.went_down.append(self._go_alone)
        connection.came_back.append(self._join)

    def __repr__(self) -> str:
        mode = "shared" if self._is_shared else "alone"
        return f"<SharedTurns {self._me}: {mode}, {len(self._seats)} seats>"

    @property
    def replicas(self) -> int:
        """How many replicas there are, as configured."""
        return self._connection.settings.replicas

    @property
    def spread(self) -> int:
        """The number of replicas while the store is down, else 1."""
        return 1 if self._is_shared else self.replicas

    @property
    def answer_timeout(self) -> float:
        """How long the store may take to answer."""
        return self._connection.settings.timeout

    @property
    def is_refusing(self) -> bool:
        """Tell whether the store is down and `on_failure` says to refuse."""
        return not self._is_shared and self._connection.settings.on_failure == "reject"

    # What queues tell.

    def opened(self, queue: SharedQueue) -> None:
        """Take a queue in, new or no longer what it was."""
        self._queues[_name(queue)] = queue
        self._routes.add(queue.route)
        if self._is_shared:
            queue.lease_lost()
        else:
            queue.lease_granted(FREE)

    def wanted(self, queue: SharedQueue) -> None:
        """Ask for a turn, or for a hold where there are no turns, unless that has been done."""
        if not self._is_shared:
            return
        if not queue.paced:
            self.unused(queue)  # it may have been paced before
            self._look(queue)
        elif _name(queue) not in self._seats:
            seat = self._seats[_name(queue)] = _Seat(queue)
            self._start(seat, _Op.ASK)

    def unused(self, queue: SharedQueue) -> None:
        """Give up a turn, or a seat in the queue."""
        seat = self._seats.get(_name(queue))
        if seat is not None and not seat.is_busy:
            self._start(seat, _Op.LEAVE)

    def used(self, queue: SharedQueue) -> None:
        """Report a send and, if somebody waits, ask for the next turn in the same breath."""
        if not self._is_shared:
            self._metrics.store_bypassed()
            return
        queue.lease_lost()
        self._report(self._seats.setdefault(_name(queue), _Seat(queue)))

    def held(self, key: str, seconds: float) -> None:
        """Have all replicas obey a hold."""
        if self._is_shared and seconds > 0:
            self._spawn(self._hold(key, seconds))

    # Commands: one at a time for each seat.

    def _start(self, seat: _Seat, op: _Op) -> None:
        seat.is_busy = True
        seat.cancel_timer()
        if op is not _Op.ASK or not seat.is_ours:
            seat.is_ours = False
            seat.queue.lease_lost()
        self._spawn(self._run(seat, op))

    def _report(self, seat: _Seat) -> None:
        """Tell for how long the last send from here keeps the next one back."""
        seat.has_sent = seat.is_busy
        if not seat.is_busy:
            self._start(seat, _Op.SENT)

    async def _run(self, seat: _Seat, op: _Op) -> None:
        """Run one command for a queue, then whatever became due meanwhile."""
        queue = seat.queue
        begun = self._clock.monotonic()
        span = queue.pace_left() if op is _Op.SENT else 0.0
        again = op is _Op.SENT and queue.wants_lease()
        try:
            status = await self._say(
                queue.key, op.value, queue.route, span=span, interval=queue.interval, again=again
            )
        except StoreDown:
            return  # the queues go on by themselves
        finally:
            seat.is_busy = False
        if self._seats.get(_name(queue)) is not seat:
            return  # the store was down and is back, and this is history
        seat.stamp = status.stamp
        if status.stamp.count == 1:  # it knew nothing, or no longer
            seat.has_sent |= op is not _Op.SENT and queue.pace_left() > 0
            self.held(queue.key, queue.hold_left())
            self._report_all_again(queue.key, status.stamp.born)
        message, seat.message = seat.message, None
        is_in = again or op is _Op.ASK
        contenders = max(1, status.wanting + (0 if is_in else 1))
        expected = self._clock.monotonic() + status.wait + status.ahead * queue.interval
        queue.lease_expected(expected, contenders)
        if seat.has_sent:
            self._report(seat)
        elif status.is_ours:
            self._take(seat, self._clock.monotonic() + status.wait, begun)
        elif is_in and message is not None and message.stamp.is_after(status.stamp):
            self._take(seat, message.at, message.since)
        elif is_in:
            self._queue(seat, expected)
        else:
            del self._seats[_name(queue)]
        self._obey(queue, status.hold)
        queue.reevaluate()

    async def _say(  # noqa: PLR0913 -- the script's arguments
        self, key: str, op: str, route: str, *, span: float, interval: float, again: bool = False
    ) -> _LeaseStatus:
        async def command() -> list[Any]:
            return await self._call_script(key, op, route, span, interval, again=again)

        return _LeaseStatus.of(await self._connection.call(command))

    async def _call_script(  # noqa: PLR0913 -- likewise
        self,
        key: str,
        op: str,
        route: str,
        span: float = 0.0,
        interval: float = 0.0,
        *,
        again: bool = False,
        keep_ms: int = _KEEP_MS,
    ) -> list[Any]:
        times = (_us(span), _us(interval), _us(_LEASE))
        arguments: list[str | int] = [op, route, self._me, *times, int(again), PREFIX, keep_ms]
        answer: list[Any] = await self._script(keys=[key], args=arguments)
        return answer

    async def _hold(self, key: str, seconds: float) -> None:
        try:
            status = await self._say(key, "hold", "", span=seconds, interval=0.0)
        except StoreDown:
            return  # this replica obeys it, and tells the others when the store is back
        if status.stamp.count == 1:
            self._report_all_again(key, status.stamp.born)

    # Turns.

    def _take(self, seat: _Seat, at: float, since: float) -> None:
        """Have the turn, which opens at that moment and was given some time after `since`."""
        now = self._clock.monotonic()
        lease = Lease(at, since + max(0.0, at - now) + _LEASE)
        if lease.until <= now:  # we stood still for so long that it may be over
            self._start(seat, _Op.ASK)
            return
        seat.is_ours = True
        seat.queue.lease_granted(lease)
        self._look_at(seat, lease.at + _LEASE * _RENEW_AT)

    def _queue(self, seat: _Seat, expected: float) -> None:
        seat.is_ours = False
        seat.queue.lease_lost()
        self._look_at(seat, max(expected, self._clock.monotonic() + _LOOK_AGAIN))

    def _look_at(self, seat: _Seat, at: float) -> None:
        """At that moment keep a turn that is not used yet, or ask about one that is overdue."""
        seat.cancel_timer()
        seat.timer = self._clock.call_at(at, lambda: self._look_again(seat))

    def _look_again(self, seat: _Seat) -> None:
        seat.timer = None
        if not seat.is_busy:
            self._start(seat, _Op.ASK)

    # Holds.

    def _look(self, queue: SharedQueue) -> None:
        name = _name(queue)
        if queue.lease is not FREE and name not in self._looking:
            self._looking.add(name)
            self._spawn(self._see_hold(queue))

    async def _see_hold(self, queue: SharedQueue) -> None:
        """Learn of a hold that began before this replica had anything to do with the account."""
        try:
            status = await self._say(queue.key, "look", "", span=0.0, interval=0.0)
        except StoreDown:
            return
        finally:
            self._looking.discard(_name(queue))
        if self._is_shared and not queue.paced:
            queue.lease_granted(FREE)
            self._obey(queue, status.hold)
            queue.reevaluate()

    @staticmethod
    def _obey(queue: SharedQueue, seconds: float) -> None:
        if seconds > queue.hold_left():
            queue.obey_hold(seconds)

    # News from the others.

    @property
    def channels(self) -> tuple[str, ...]:
        """What is said to us, and what is said to all."""
        return PREFIX + self._me, _ALL

    async def self_test(self) -> None:
        """Run the script once, on a key of its own."""
        await self._call_script(_SELF_TEST, "leave", "", keep_ms=_SELF_TEST_MS)

    def receive(self, text: str, since: float) -> None:
        """Take news; what is not understood is not for us."""
        match text.split(" "):
            case ["hold", who, key, *rest] if who != self._me and _are_numbers(rest, 1):
                for queue in self._queues_of(key):
                    self._obey(queue, int(rest[0]) / 1e6)
            case _ if not self._is_shared:
                pass  # turns ended with the store
            case ["turn", key, route, *rest] if _are_numbers(rest, 3):
                born, count, wait = map(int, rest)
                at = self._clock.monotonic() + wait / 1e6
                self._receive_lease((key, route), _LeaseMessage(_Stamp(born, count), at, since))
            case ["over", key, route, *rest] if _are_numbers(rest, 2):
                self._receive_over((key, route), _Stamp(*map(int, rest)))
            case ["lost", who, key, *rest] if who != self._me and _are_numbers(rest, 1):
                self._receive_lost(key, int(rest[0]))

    def _receive_lease(self, name: _Name, message: _LeaseMessage) -> None:
        seat, queue = self._seats.get(name), self._queues.get(name)
        if seat is None:
            if queue is not None:
                self._give_up(queue)
        elif seat.is_busy:
            seat.message = message
        elif message.stamp.is_after(seat.stamp):
            self._take(seat, message.at, message.since)
            # Not at once: the next message may say that it is over.
            self._clock.call_at(self._clock.monotonic(), seat.queue.reevaluate)

    def _receive_over(self, name: _Name, stamp: _Stamp) -> None:
        seat = self._seats.get(name)
        if seat is None or seat.is_busy or not seat.is_ours or not stamp.is_after(seat.stamp):
            return
        if self._clock.monotonic() < seat.queue.lease.until:
            self._metrics.store_bypassed()  # the server's clock was set forward
        seat.is_ours = False
        self._start(seat, _Op.ASK)

    def _receive_lost(self, key: str, born: int) -> None:
        """Say again what the store was told of an account and no longer knew when `born` began."""
        hold = max((queue.hold_left() for queue in self._queues_of(key)), default=0.0)
        if self._report_all_again(key, born) or hold > 0:
            self._metrics.store_bypassed()
            self.held(key, hold)

    def _report_all_again(self, key: str, born: int) -> bool:
        """Tell again of queues of which the store was last told before that."""
        queues = [queue for queue in self._queues_of(key) if self._has_told(queue, before=born)]
        for queue in queues:
            self._report_again(queue)
        return bool(queues)

    def _has_told(self, queue: SharedQueue, *, before: int) -> bool:
        seat = self._seats.get(_name(queue))
        if seat is None or seat.stamp is None:
            return queue.pace_left() > 0
        return queue.paced and seat.stamp.born != before

    def _report_again(self, queue: SharedQueue) -> None:
        """Report the last send, for as long as it counts, and ask if somebody waits."""
        seat = self._seats.setdefault(_name(queue), _Seat(queue))
        seat.is_ours = False
        queue.lease_lost()
        self._report(seat)

    def _queues_of(self, key: str) -> list[SharedQueue]:
        queues = (self._queues.get((key, route)) for route in self._routes)
        return [queue for queue in queues if queue is not None]

    # Failure and return.

    # Telling a queue makes its whole account look who may send, so all queues are made ready first.

    def _go_alone(self) -> None:
        self._is_shared = False
        for name, seat in self._seats.items():
            seat.cancel_timer()
            self._abandoned[name] = seat.queue
        self._seats.clear()
        queues = list(self._queues.values())
        for queue in queues:
            # Others may have sent just now, and know no more than we do.
            queue.store_lost()
        for queue in queues:
            if self.is_refusing and queue.paced:
                queue.refuse_waiters()
            queue.reevaluate()

    def _join(self) -> None:
        self._is_shared = True
        queues = list(self._queues.values())
        holds: dict[str, float] = {}
        for queue in queues:
            queue.lease_lost()
            holds[queue.key] = queue.hold_left()
            if queue.paced:
                queue.keep_distance(self.replicas)
        for key, seconds in holds.items():
            self.held(key, seconds)
        for queue in queues:
            if queue.paced and queue.pace_left() > 0:
                self._report_again(queue)
            queue.reevaluate()
        abandoned, self._abandoned = self._abandoned, {}
        for queue in abandoned.values():
            self._give_up(queue)

    def _give_up(self, queue: SharedQueue) -> None:
        """Give up what the store thinks we want, unless we do."""
        if _name(queue) not in self._seats:
            seat = self._seats[_name(queue)] = _Seat(queue)
            self._start(seat, _Op.LEAVE)


def _name(queue: SharedQueue) -> _Name:
    return queue.key, queue.route


def _are_numbers(words: list[str], count: int) -> bool:
    return len(words) == count and all(w.isdecimal() and len(w) < _MAX_DIGITS for w in words)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
