"""What came of late, and which names come most often, in bounded memory.

Theory of operation. A full tally replaces the name with the smallest count by the new one, which
takes over that count: the space-saving algorithm (Metwally, Agrawal and El Abbadi, ICDT 2005). So a
name that makes up more than 1/places of all additions is always there, and a count may be too high,
never too low.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar


@dataclass(slots=True)
class RecentCount:
    """How much came in the last `SECONDS`, in steps of `STEP` seconds; `now` is monotonic."""

    SECONDS: ClassVar = 60.0
    STEP: ClassVar = 2.0

    _steps: deque[tuple[int, int]] = field(default_factory=deque)
    _total: int = 0

    def add(self, now: float) -> None:
        """Count one more."""
        step = int(now // self.STEP)
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1] = (step, self._steps[-1][1] + 1)
        else:
            self._forget(step)
            self._steps.append((step, 1))
        self._total += 1

    def total(self, now: float) -> int:
        """Return the count."""
        self._forget(int(now // self.STEP))
        return self._total

    def _forget(self, step: int) -> None:
        oldest = step - int(self.SECONDS // self.STEP)
        while self._steps and self._steps[0][0] < oldest:
            self._total -= self._steps.popleft()[1]


@dataclass(frozen=True, slots=True)
class CallerCount:
    """A caller, and the number of its requests."""

    caller: str
    count: int


class Tally:
    """Counts names; `places` of them at most."""

    __slots__ = ("_counts", "_places")

    def __init__(self, places: int) -> None:
        self._counts: dict[str, int] = {}
        self._places = places

    def __repr__(self) -> str:
        return f"<Tally of {len(self._counts)} names>"

    def add(self, name: str) -> None:
        """Count a name once more."""
        counts = self._counts
        if name not in counts and len(counts) >= self._places:
            least = min(counts, key=counts.__getitem__)
            counts[name] = counts.pop(least)
        counts[name] = counts.get(name, 0) + 1

    def counts(self) -> dict[str, int]:
        """Return the names with their counts."""
        return dict(self._counts)


class RecentTally:
    """Counts recent names: over at least one span of seconds, and at most two."""

    __slots__ = ("_last", "_places", "_present", "_seconds", "_since")

    def __init__(self, places: int, seconds: float) -> None:
        self._places = places
        self._seconds = seconds
        self._since = -inf
        self._last = self._present = Tally(places)

    def __repr__(self) -> str:
        return f"<RecentTally: {self._present}>"

    def add(self, name: str, now: float) -> None:
        """Count a name once more, at that monotonic time."""
        self._turn(now)
        self._present.add(name)

    def top(self, most: int, now: float) -> tuple[CallerCount, ...]:
        """Return the names that came most often, the first one first."""
        self._turn(now)
        counts = self._present.counts()
        for name, count in self._last.counts().items():
            counts[name] = counts.get(name, 0) + count
        return top(counts, most)

    def _turn(self, now: float) -> None:
        if now < self._since + self._seconds:
            return
        is_next = now < self._since + 2 * self._seconds
        self._last = self._present if is_next else Tally(self._places)
        self._present = Tally(self._places)
        self._since = self._since + self._seconds if is_next else now


def top(counts: dict[str, int], most: int) -> tuple[CallerCount, ...]:
    """Return the largest counts, the first one first; of equal ones the first name."""
    first = heapq.nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(CallerCount(name, count) for name, count in first)
