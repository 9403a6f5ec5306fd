"""Whose turn it is on a queue that several replicas share: what pacing needs of a store.

Each replica keeps its own queues of waiters; what they share is whose turn it is. `Turns` is the
seam: `Alone` here for a single process, store/turns.py for many on one Redis.
"""

from dataclasses import dataclass
from math import inf
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Turn:
    """From when and until when a queue may use its turn; monotonic seconds."""

    at: float
    until: float

    def opens(self, now: float) -> float:
        """Return from when on the turn may be used; `inf` once it has run out."""
        return self.at if now <= self.until else inf


FREE: Final = Turn(-inf, inf)  # nobody else is to be asked
NOT_OURS: Final = Turn(inf, -inf)


class SharedQueue(Protocol):
    """What a store knows of a replica's queue, and tells it; times are monotonic seconds.

    `turn` is kept by the store. So are `turn_hint`, when the queue's turn is expected to come, and
    `contenders`, how many replicas have waiters on this queue.
    """

    turn: Turn
    turn_hint: float
    contenders: int

    @property
    def key(self) -> str:
        """Name of the account's state in the store; holds no client id and no token."""
        ...

    @property
    def route(self) -> str:
        """The route's name."""
        ...

    @property
    def paced(self) -> bool:
        """Whether sends take turns; where they do not, they obey holds all the same."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between two sends."""
        ...

    def wants_turn(self) -> bool:
        """Tell whether somebody waits here who could be sent in a turn."""
        ...

    def pace_left(self) -> float:
        """Return the seconds for which the last send from here keeps the next one back."""
        ...

    def hold_left(self) -> float:
        """Return the seconds of silence the account has left."""
        ...

    def turn_changed(self) -> None:
        """Look again who may send now."""
        ...

    def keep_distance(self, replicas: int) -> None:
        """Send nothing for an interval, or for `replicas` of them after a send from here."""
        ...

    def silence(self, seconds: float) -> None:
        """Obey a hold that another replica was told."""
        ...

    def refuse_waiters(self) -> None:
        """Refuse everybody who waits: there is no store to keep the pace."""
        ...


class Turns(Protocol):
    """Whose turn it is on a queue that several replicas share. No method waits or raises."""

    @property
    def replicas(self) -> int:
        """How many replicas there are, as configured."""
        ...

    @property
    def spread(self) -> int:
        """By how much intervals are stretched: the number of replicas while the store is down."""
        ...

    @property
    def patience(self) -> float:
        """How many seconds it may take to learn whose turn it is."""
        ...

    @property
    def is_refusing(self) -> bool:
        """Tell whether paced requests are refused, because the store is down."""
        ...

    def opened(self, queue: SharedQueue) -> None:
        """There is a new queue, or one that was not paced is now, or the reverse."""
        ...

    def wanted(self, queue: SharedQueue) -> None:
        """Somebody could be sent: see that the queue's turn comes. Repeating it changes nothing."""
        ...

    def unused(self, queue: SharedQueue) -> None:
        """Nobody could be sent: somebody else may have the turn. Repeating it changes nothing."""
        ...

    def used(self, queue: SharedQueue) -> None:
        """The turn was used for a send: `pace_left` says how long others have to wait."""
        ...

    def held(self, key: str, seconds: float) -> None:
        """The API asked this account for silence."""
        ...


class Alone:
    """Turns for one replica."""

    replicas = 1
    spread = 1
    patience = 0.0
    is_refusing = False

    def opened(self, queue: SharedQueue) -> None:
        """The queue's own pace is all there is."""
        queue.turn = FREE

    def wanted(self, queue: SharedQueue) -> None:
        """The turn is always ours."""

    def unused(self, queue: SharedQueue) -> None:
        """Nobody else wants it."""

    def used(self, queue: SharedQueue) -> None:
        """Nobody is to be told."""

    def held(self, key: str, seconds: float) -> None:
        """Nobody else has to obey."""
