"""How many lines the log takes in a second: in all, and from each account or address.

One owner may use up all lines of a second. Beyond them, an owner that has logged little may still
write some: a flood of one account does not push out another's lines. Lines beyond are bounded too,
except for configured accounts, whose number the operator knows.
"""

from collections import Counter
from typing import Final, NamedTuple

_OWN_SHARE: Final = 2  # each owner has at least this part of all lines
_MOST_BEYOND: Final = 4  # times all lines: what unconfigured owners together may log beyond them


class Owner(NamedTuple):
    """Whose line it is: an account, an address whose account is not known, or the proxy itself."""

    key: str
    is_configured: bool


PROXY: Final = Owner("", is_configured=True)


class LineBudget:
    """Counts the lines of the current second; `second` is an argument, in monotonic time."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0
        self._beyond = 0
        self._lines_of: Counter[str] = Counter()

    def begin(self, second: int) -> bool:
        """Start a new count if the second has changed; True if it has."""
        if second == self._second:
            return False
        self._second, self._lines, self._beyond = second, 0, 0
        self._lines_of.clear()
        return True

    def take(self, owner: Owner, most: int) -> bool:
        """Count a line of this owner; False if it has none left in this second."""
        mine = self._lines_of[owner.key]
        if self._lines >= most:
            if mine >= max(1, most // _OWN_SHARE):
                return False
            if not owner.is_configured:
                if self._beyond >= _MOST_BEYOND * most:
                    return False
                self._beyond += 1
        self._lines += 1
        self._lines_of[owner.key] = mine + 1
        return True
