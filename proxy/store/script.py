"""The script (turn.lua) in Python values: its operations, its answers and its messages.

A replica calls the script with an operation; the script answers with a `LeaseStatus` and publishes
messages to other replicas. Answers and messages come by two connections, in any order. So each
bears a `Stamp`: `count` numbers the operations on one state of an account, and `born` tells that
state from one that was lost before it. `Stamp.is_after` decides which of two is news.

Moments come from the server's clock only. They reach us as "so many microseconds from now", and
leave this module as seconds from now. Keys hold hashes. What cannot be parsed is no message.
"""

from dataclasses import dataclass
from enum import Enum
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis

from proxy.store.client import PREFIX

LEASE: Final = 2.0  # seconds a lease may stay unused after it is due, before others get it
_SOURCE: Final = files("proxy.store").joinpath("turn.lua").read_text(encoding="utf-8")
_KEEP_MS: Final = 60_000  # how long the state outlives what it says
_SELF_TEST: Final = PREFIX + "{self-test}"
_SELF_TEST_MS: Final = 1_000
_MAX_DIGITS: Final = 20  # of a number in a message

Name = tuple[str, str]  # key and route


class Op(Enum):
    """What a replica may do to the state of an account."""

    ASK = "ask"
    SENT = "sent"
    LEAVE = "leave"
    HOLD = "hold"
    LOOK = "look"


@dataclass(frozen=True, slots=True)
class Stamp:
    """The operation and the state from which something comes; a lost state begins anew."""

    born: int
    count: int

    @property
    def is_first(self) -> bool:
        """True if there was no state before this operation."""
        return self.count == 1

    def is_after(self, other: "Stamp | None") -> bool:
        """True if this is newer; of two states, the one heard of last counts as newer."""
        return other is None or other.born != self.born or other.count < self.count


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """What the script answers; seconds from now."""

    is_ours: bool
    wait: float
    wanting: int
    ahead: int
    hold: float
    stamp: Stamp

    @classmethod
    def of(cls, answer: list[Any]) -> "LeaseStatus":
        """Parse an answer. Raises ValueError or TypeError if it is none of the script's."""
        mine, wait, wanting, ahead, hold, born, count = map(int, answer)
        return cls(bool(mine), wait / 1e6, wanting, ahead, hold / 1e6, Stamp(born, count))


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
class HoldMessage:
    """Another replica was told of a hold."""

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class LostMessage:
    """Another replica found no state of that account; it began anew at `born`."""

    key: str
    born: int


Message = LeaseMessage | OverMessage | HoldMessage | LostMessage


def parse_message(text: str, *, me: str) -> Message | None:
    """Return the message; None for our own, and for what is not understood."""
    match text.split(" "):
        case ["turn", key, route, *rest] if _are_numbers(rest, 3):
            born, count, wait = map(int, rest)
            return LeaseMessage((key, route), Stamp(born, count), wait / 1e6)
        case ["over", key, route, *rest] if _are_numbers(rest, 2):
            return OverMessage((key, route), Stamp(*map(int, rest)))
        case ["hold", who, key, *rest] if who != me and _are_numbers(rest, 1):
            return HoldMessage(key, int(rest[0]) / 1e6)
        case ["lost", who, key, *rest] if who != me and _are_numbers(rest, 1):
            return LostMessage(key, int(rest[0]))
    return None


class Script:
    """The script as a replica calls it. Raises whatever redis-py raises."""

    def __init__(self, redis: Redis, me: str) -> None:
        self.me = me
        self._script = redis.register_script(_SOURCE)

    async def run(  # noqa: PLR0913 -- the script's arguments
        self,
        op: Op,
        key: str,
        route: str = "",
        *,
        span: float = 0.0,
        interval: float = 0.0,
        again: bool = False,
        keep_ms: int = _KEEP_MS,
    ) -> list[Any]:
        """Return the script's answer as it came."""
        times = (_us(span), _us(interval), _us(LEASE))
        arguments: list[str | int] = [op.value, route, self.me, *times, int(again), PREFIX, keep_ms]
        answer: list[Any] = await self._script(keys=[key], args=arguments)
        return answer

    async def self_test(self) -> None:
        """Run the script once, on a key of its own."""
        await self.run(Op.LEAVE, _SELF_TEST, keep_ms=_SELF_TEST_MS)


def _are_numbers(words: list[str], count: int) -> bool:
    return len(words) == count and all(w.isdecimal() and len(w) < _MAX_DIGITS for w in words)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
