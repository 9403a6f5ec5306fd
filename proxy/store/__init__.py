"""Where the state of pacing lives when there are several replicas: turns, holds, learned tokens.

Each replica keeps its own lines of waiters; what they share is whose turn it is. `Turns` is the
seam: alone.py for a single process, turns.py for many on one Redis.
"""

from typing import Protocol


class SharedLine(Protocol):
    """What a store knows of a replica's line; times are monotonic seconds.

    `turn_at` is from when on the line may use its turn: `inf` when it is not its turn, `-inf` when
    nobody else has one. `turn_hint` is when its turn is expected, `contenders` how many replicas
    have waiters on this line.
    """

    turn_at: float
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
    def interval(self) -> float:
        """Seconds between two sends."""
        ...

    def has_waiters(self) -> bool:
        """Tell whether anybody waits here."""
        ...

    def turn_changed(self) -> None:
        """Look again who may send now."""
        ...

    def keep_distance(self) -> None:
        """Send nothing for one interval: others may just have sent."""
        ...

    def silence(self, seconds: float) -> None:
        """Obey a hold that another replica was told."""
        ...


class Turns(Protocol):
    """Whose turn it is on a line that several replicas share. No method waits or raises."""

    @property
    def spread(self) -> int:
        """By how much intervals are stretched: the number of replicas while the store is down."""
        ...

    @property
    def is_refusing(self) -> bool:
        """Tell whether paced requests are refused, because the store is down."""
        ...

    def opened(self, line: SharedLine) -> None:
        """There is a new line."""
        ...

    def wanted(self, line: SharedLine) -> None:
        """Somebody waits on the line: see that its turn comes."""
        ...

    def used(self, line: SharedLine, cost: float) -> None:
        """The turn was used for a send of that cost (in intervals)."""
        ...

    def unused(self, line: SharedLine) -> None:
        """Nobody waits any more: somebody else may have the turn."""
        ...

    def held(self, key: str, seconds: float) -> None:
        """The API asked this account for silence."""
        ...
