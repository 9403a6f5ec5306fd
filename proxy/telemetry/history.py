"""The sends and holds of the last ten minutes, by account and route, for the status page.

Accounts are those that metrics show: configured names, short names, and `other`. Times are
monotonic seconds. Each route has a ring of short spans, each with the number of its sends and the
smallest gap before one of them, so that no send and no gap is missed however many there are.
The memory of a route is fixed, about three kilobytes.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

from proxy.rules.short_names import ShownAccounts

WINDOW: Final = 600.0
"""How many seconds are remembered."""
SPAN: Final = 5.0
"""Seconds that are told as one: a pixel or two of a plot."""
_SPANS: Final = round(WINDOW / SPAN)
_HOLDS: Final = 60  # of an account; ten seconds each would fill the window


@dataclass(frozen=True, slots=True)
class Sends:
    """The sends of one span, which began `ago` seconds ago; the gap is None before the second."""

    ago: float
    count: int
    smallest_gap: float | None


@dataclass(frozen=True, slots=True)
class Held:
    """A hold of one route, or of all (None); it may go on, and then it ended 0 seconds ago."""

    route: str | None
    began_ago: float
    ended_ago: float


@dataclass(slots=True)
class _Hold:
    route: str | None
    begun: float
    until: float


class _Ring:
    """The spans of one route."""

    __slots__ = ("_counts", "_gaps", "_numbers")

    def __init__(self) -> None:
        self._numbers = array("q", [-1]) * _SPANS  # which span a place holds
        self._counts = array("L", [0]) * _SPANS
        self._gaps = array("d", [inf]) * _SPANS

    def add(self, at: float, gap: float | None) -> None:
        number = int(at // SPAN)
        place = number % _SPANS
        if self._numbers[place] != number:
            self._numbers[place], self._counts[place], self._gaps[place] = number, 0, inf
        self._counts[place] += 1
        if gap is not None and gap < self._gaps[place]:
            self._gaps[place] = gap

    def spans(self, now: float) -> Iterator[Sends]:
        """Yield the spans in which something was sent, the oldest first."""
        last = int(now // SPAN)
        for number in range(last - _SPANS + 1, last + 1):
            place = number % _SPANS
            if self._numbers[place] == number:
                gap = self._gaps[place]
                yield Sends(now - number * SPAN, self._counts[place], None if gap == inf else gap)


class History:
    """Remembers sends and holds, by account."""

    def __init__(self) -> None:
        self._rings: dict[str, dict[str, _Ring]] = {}
        self._holds: dict[str, deque[_Hold]] = {}

    def sent(self, account: str, route: str, *, at: float, gap: float | None) -> None:
        """Note a send, and how long after the one before it on that route."""
        rings = self._rings.setdefault(account, {})
        ring = rings.get(route)
        if ring is None:
            ring = rings[route] = _Ring()
        ring.add(at, gap)

    def held(self, account: str, route: str | None, *, begun: float, until: float) -> None:
        """Note a hold of one route or of all (None); one that goes on is prolonged."""
        holds = self._holds.setdefault(account, deque(maxlen=_HOLDS))
        for hold in reversed(holds):
            if hold.route == route and hold.until >= begun:
                hold.until = max(hold.until, until)
                return
        holds.append(_Hold(route, begun, until))

    def keep(self, accounts: Iterable[str]) -> None:
        """Forget accounts that are no longer configured."""
        names = ShownAccounts(accounts)
        self._rings = {name: rings for name, rings in self._rings.items() if name in names}
        self._holds = {name: holds for name, holds in self._holds.items() if name in names}

    def accounts(self) -> list[str]:
        """Return the names of the accounts with any history."""
        return list(self._rings | self._holds)

    def sends(self, account: str, now: float) -> dict[str, list[Sends]]:
        """Return the spans in which an account sent something, by route."""
        return {
            route: list(ring.spans(now)) for route, ring in self._rings.get(account, {}).items()
        }

    def holds(self, account: str, now: float) -> list[Held]:
        """Return the holds of an account in the window, the oldest first."""
        return [
            Held(hold.route, now - hold.begun, max(0.0, now - hold.until))
            for hold in self._holds.get(account, ())
            if hold.until > now - WINDOW
        ]
