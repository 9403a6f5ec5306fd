"""The quota that the API announces on its ordinary answers: how much of a window is used.

To obey it avoids the 429 that the next request would get. A quota can only slow sends down; one
that is missing or malformed changes nothing. `now` is in monotonic seconds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Quota:
    """How many requests are left in the window, and for how many seconds it still lasts."""

    remaining: int
    reset: float

    @classmethod
    def parse(
        cls, count: Sequence[str], allowed: Sequence[str], reset: Sequence[str]
    ) -> "Quota | None":
        """Return what the values of the three fields say; None unless each is one number.

        A window of zero requests or zero seconds counts as none.
        """
        numbers = [_number(values) for values in (count, allowed, reset)]
        used, most, seconds = numbers
        if used is None or not most or not seconds:
            return None
        return cls(remaining=max(0, most - used), reset=float(seconds))


@dataclass(frozen=True, slots=True)
class QuotaLeft:
    """The requests that may be under way at once until the window ends."""

    room: int
    until: float

    def opens_at(self, now: float, in_flight: int) -> float:
        """Return when one more request may leave.

        Each request under way may still count, so no more are sent than are left; each answer says
        anew how many that is.
        """
        return self.until if now < self.until and in_flight >= self.room else now


def _number(values: Sequence[str]) -> int | None:
    text = values[0].strip(" \t") if len(values) == 1 else ""
    return int(text) if _NUMBER.fullmatch(text) else None
