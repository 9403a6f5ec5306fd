"""Episodes: one trouble from its start to its end, and what the desk must still be told.

    not opened ──open──> opened ──(news) update──> opened ──(over) close──> done
        │                                              │
        └──(over) opened all the same, then closed     └── a person may close it meanwhile

An episode that ends before it could be opened is opened and closed when the desk answers again. Of
these the oldest are dropped, if they ended more than `KEPT_SECONDS` ago or are more than
`MOST_KEPT`. Trouble that still lasts is never dropped.

An incident found at the desk after a restart is an episode too: it is `confirmed` once its trouble
is seen here. If that does not happen within `UNSEEN_SECONDS`, the episode is over.

Monotonic seconds, except where a name says wall; `now` is an argument.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final, Literal

from proxy.rules.incidents import (
    Sighting,
    Trouble,
    Unseen,
    end_of,
)

KEPT_SECONDS: Final = 3_600.0  # a desk that is down for an hour misses nothing
MOST_KEPT: Final = 10_000  # some ten megabytes
UNSEEN_SECONDS: Final = 900.0  # as long as a grant may take to show up again
UPDATE_SECONDS: Final = 60.0  # between two updates of one incident
MOST_REFUSALS: Final = 10  # of one step by the desk; with growing pauses some five hours
_FIRST_PAUSE: Final = 30.0  # after a refusal, and doubled after each further one
_LONGEST_PAUSE: Final = 3_600.0

Step = Literal["open", "update", "close"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One trouble from start to end.

    `reported` is what the desk knows of it, `handle` the desk's own name for it. `over_at` is wall
    time, `ended` the monotonic moment of the same.
    """

    id: str
    trouble: Trouble
    begun: float
    confirmed: bool = True
    reported: Trouble | None = None
    reported_at: float = -inf
    handle: str = ""
    ended: float | None = None
    over_at: float = 0.0
    notes: str = ""
    refusals: int = 0
    not_before: float = -inf

    @property
    def is_over(self) -> bool:
        return self.ended is not None

    @property
    def is_unreported(self) -> bool:
        """True if the trouble is over and the desk was never told."""
        return self.is_over and self.reported is None

    def after_look(self, sighting: Sighting, *, now: float, wall: float) -> "Episode":
        """Return the episode after its trouble was looked at again."""
        match sighting:
            case Trouble():
                trouble = replace(sighting, since=self.trouble.since)
                return replace(self, trouble=trouble, confirmed=True)
            case Unseen.CLEAR:
                return self.over(end_of(self.trouble.kind), now=now, wall=wall)
            case Unseen.UNKNOWN:
                if self.confirmed or now < self.begun + UNSEEN_SECONDS:
                    return self
                return self.over("Not seen again since the proxy started.", now=now, wall=wall)

    def over(self, notes: str, *, now: float, wall: float) -> "Episode":
        """Return the episode at its end."""
        return replace(self, ended=now, over_at=wall, notes=notes)

    def step(self) -> Step | None:
        """Return the next thing to tell the desk."""
        if self.reported is None:
            return "open"
        if self.is_over:
            return "close"
        if self.confirmed and self.reported.mark != self.trouble.mark:
            return "update"
        return None

    def due(self) -> float:
        """Return when the next step may be taken; `inf` if there is none."""
        match self.step():
            case None:
                return inf
            case "update":
                return max(self.not_before, self.reported_at + UPDATE_SECONDS)
            case "open" | "close":
                return self.not_before

    def told(self, trouble: Trouble, *, handle: str, now: float) -> "Episode":
        """Return the episode after the desk took that news of it."""
        return replace(
            self,
            reported=trouble,
            reported_at=now,
            handle=handle,
            refusals=0,
            not_before=-inf,
        )

    def later(self, seconds: float, *, now: float) -> "Episode":
        """Return the episode with its next step postponed by that many seconds."""
        return replace(self, not_before=now + seconds)

    def refused(self, *, now: float) -> "Episode | None":
        """Return the episode after the desk refused a step; None if it is given up."""
        refusals = self.refusals + 1
        if refusals >= MOST_REFUSALS:
            return None
        pause = min(_FIRST_PAUSE * 2.0**self.refusals, _LONGEST_PAUSE)
        return replace(self, refusals=refusals, not_before=now + pause)


def surplus(episodes: Iterable[Episode], now: float) -> Sequence[Episode]:
    """Return the unreported episodes to drop, the oldest first."""
    unreported = [episode for episode in episodes if episode.is_unreported]
    stale = [one for one in unreported if one.ended is not None and one.ended + KEPT_SECONDS < now]
    excess = len(unreported) - MOST_KEPT
    return stale if len(stale) >= excess else unreported[:excess]
