"""The script (lease.lua) in Python values: its operations, its answers and its messages.

A replica calls the script with an operation; the script answers with a `LeaseStatus` and publishes
messages to other replicas. Answers and messages come by two connections, in any order. So each
carries a `Stamp`: `count` numbers the operations on one state of an account, and `born`
distinguishes that state from one that was lost before it. `Stamp.is_after` decides which of two is
newer.

Only the server's clock counts. Moments come as microseconds from now, and leave this module as
seconds from now. Keys hold hashes. A message that cannot be parsed is ignored.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib.resources import files
from typing import Final, cast

from proxy.pacing.leases import HoldLeft
from proxy.store.client import PREFIX
from proxy.store.connection import Connection
from proxy.store.wire import ErrorReply, Reply, StoreDown, Wire, Word

LEASE: Final = 2.0  # seconds a lease may stay unused after it is due, before others get it
_SOURCE: Final = files("proxy.store").joinpath("lease.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SOURCE, usedforsecurity=False).hexdigest()  # as Redis names it
_KEEP_MS: Final = 60_000  # how long the state outlives what it says
_SELF_TEST: Final = PREFIX + "{self-test}"
_SELF_TEST_MS: Final = 1_000
_MAX_DIGITS: Final = 20  # of a number in a message

Name = tuple[str, str]  # key and route


class Op(Enum):
    """An operation on the state of an account."""

    ASK = "ask"
    SENT = "sent"
    LEAVE = "leave"
    HOLD = "hold"
    OPEN = "open"
    LOOK = "look"


class Again(Enum):
    """What a replica that has sent wants next."""

    NOTHING = ""
    WAIT = "wait"  # another lease, for a waiter
    KEEP = "keep"  # the lease for a send to come, if no other replica wants it


@dataclass(frozen=True, slots=True)
class Stamp:
    """The operation and the state that an answer or message comes from."""

    born: int
    count: int

    @property
    def is_first(self) -> bool:
        """True if there was no state before this operation."""
        return self.count == 1

    def is_after(self, other: "Stamp | None") -> bool:
        """True if this is newer; of two states, the one seen last counts as newer."""
        return other is None or other.born != self.born or other.count < self.count


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """What the script answers; seconds from now."""

    is_ours: bool
    wait: float
    wanting: int
    ahead: int
    hold: HoldLeft
    route_hold: HoldLeft
    stamp: Stamp

    @classmethod
    def of(cls, answer: Reply) -> "LeaseStatus":
        """Parse an answer. Raises ValueError or TypeError if it is none of the script's."""
        if not isinstance(answer, list):
            raise TypeError
        mine, wait, wanting, ahead, hold, born, count, named, route_hold, route_named = (
            int(cast("bytes", part)) for part in answer
        )
        return cls(
            is_ours=bool(mine),
            wait=wait / 1e6,
            wanting=wanting,
            ahead=ahead,
            hold=_hold_left(hold, named),
            route_hold=_hold_left(route_hold, route_named),
            stamp=Stamp(born, count),
        )


@dataclass(frozen=True, slots=True)
class LeaseMessage:
    """A queue of this replica has the lease, which may be used after `wait` seconds."""

    name: Name
    stamp: Stamp
    wait: float


@dataclass(frozen=True, slots=True)
class OverMessage:
    """A lease of this replica ran out, and another replica got it."""

    name: Name
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class WantedMessage:
    """Another replica wants the lease that this replica has."""

    name: Name
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class HoldMessage:
    """Another replica was told of a hold, of one route or of all ("")."""

    name: Name
    left: HoldLeft


@dataclass(frozen=True, slots=True)
class OpenMessage:
    """Another replica has seen that a hold is over."""

    name: Name


@dataclass(frozen=True, slots=True)
class LostMessage:
    """Another replica found no state of that account; a new one began at `born`."""

    key: str
    born: int


Message = LeaseMessage | OverMessage | WantedMessage | HoldMessage | OpenMessage | LostMessage


def parse_message(text: str, *, me: str) -> Message | None:  # noqa: PLR0911 -- one a message
    """Return the message; None for our own, and for one that cannot be parsed."""
    match text.split(" "):
        case ["lease", key, route, *rest] if _are_numbers(rest, 3):
            born, count, wait = map(int, rest)
            return LeaseMessage((key, route), Stamp(born, count), wait / 1e6)
        case ["over", key, route, *rest] if _are_numbers(rest, 2):
            return OverMessage((key, route), Stamp(*map(int, rest)))
        case ["wanted", key, route, *rest] if _are_numbers(rest, 2):
            return WantedMessage((key, route), Stamp(*map(int, rest)))
        case ["hold", who, key, route, *rest] if who != me and _are_numbers(rest, 2):
            return HoldMessage((key, route), _hold_left(*map(int, rest)))
        case ["open", who, key, route] if who != me:
            return OpenMessage((key, route))
        case ["lost", who, key, *rest] if who != me and _are_numbers(rest, 1):
            return LostMessage(key, int(rest[0]))
    return None


class Script:
    """The script as a replica calls it."""

    def __init__(self, connection: Connection, me: str) -> None:
        self.me = me
        self._connection = connection

    def run(  # noqa: PLR0913 -- the script's arguments
        self,
        op: Op,
        key: str,
        route: str = "",
        *,
        span: float = 0.0,
        named: float = 0.0,
        interval: float = 0.0,
        again: Again = Again.NOTHING,
        answered: Callable[[LeaseStatus | StoreDown], None],
    ) -> None:
        """Run the script, and hand its answer on."""
        words = self._words(op, key, route, span=span, named=named, interval=interval, again=again)

        def receive(reply: Reply | StoreDown) -> None:
            if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
                self._connection.send(("EVAL", _SOURCE, *words), receive)
                return
            answered(reply if isinstance(reply, StoreDown) else self._status(reply))

        self._connection.send(("EVALSHA", _SHA, *words), receive)

    async def self_test(self, wire: Wire) -> None:
        """Run the script once, on a key of its own; the server keeps it. Raises StoreDown."""
        await wire.run("EVAL", _SOURCE, *self._words(Op.LEAVE, _SELF_TEST, keep_ms=_SELF_TEST_MS))

    def _words(  # noqa: PLR0913 -- likewise
        self,
        op: Op,
        key: str,
        route: str = "",
        *,
        span: float = 0.0,
        named: float = 0.0,
        interval: float = 0.0,
        again: Again = Again.NOTHING,
        keep_ms: int = _KEEP_MS,
    ) -> tuple[Word, ...]:
        times = (_us(span), _us(interval), _us(LEASE))
        return (1, key, op.value, route, self.me, *times, again.value, PREFIX, keep_ms, _us(named))

    def _status(self, reply: Reply) -> LeaseStatus | StoreDown:
        try:
            return LeaseStatus.of(reply)
        except (ValueError, TypeError):
            down = (
                reply.as_down()
                if isinstance(reply, ErrorReply)
                else StoreDown("the answer is not usable")
            )
            self._connection.fail(down)
            return down


def _are_numbers(words: list[str], count: int) -> bool:
    return len(words) == count and all(w.isdecimal() and len(w) < _MAX_DIGITS for w in words)


def _hold_left(seconds: int, named: int) -> HoldLeft:
    return HoldLeft(seconds / 1e6, named / 1e6)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
