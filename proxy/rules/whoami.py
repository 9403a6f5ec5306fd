"""Asking the API whose token it is: what its answers mean, and when to ask.

Values in, values out; `now` is monotonic seconds where not said otherwise. Asking, waiting
and sending are in identity/whoami.py.

The bounds keep a flood of tokens from becoming a flood of questions: `Pace` allows a number of
questions per second, `Places` serves waiting questions in turn between callers' addresses, and
`Switch` stops asking an API that has no such call.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Generic, TypeVar

UNDER_WAY: Final = 4  # questions at once: a slow API must not take many connections
A_SECOND: Final = 10  # questions; few beside the 300 requests a minute of one token
WAITING: Final = 64  # questions that wait for a place
LONGEST_WAIT: Final = 2.0  # seconds for a place; then the caller is served as a stranger
ASK_AGAIN: Final = 60.0  # seconds after an answer that names no client
DENIED_FOR: Final = 10.0  # seconds for which a 401 counts
USUAL_LIFE: Final = 3600.0  # seconds for which an answer counts, where the token names no end
_WINDOW: Final = 1.1  # seconds: ten sent within it arrive as ten in any one second
_OFF_AFTER: Final = 5  # answers 404 in a row
_OFF_FOR: Final = 600.0  # seconds
_MAX_DEPTH: Final = 4  # of an answer; the vendor's has two levels
_GRANTS: Final = frozenset({"clientcredentials"})
_PERSONS: Final = ("user", "person")


@dataclass(frozen=True, slots=True)
class Named:
    """The token belongs to that client; `organization` is set if it is the client's own service.

    A person's token has a client, too, and no organization here.
    """

    client_id: str
    organization: str | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The API does not accept the token."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """The answer names no client; `is_missing` if the API says that it has no such call."""

    is_missing: bool = False


Finding = Named | Rejected | Unclear


def read_answer(status: int, document: Mapping[str, Any], field: str) -> Finding:
    """Return what an answer means; `field` is the dotted path of the client id in its body."""
    if status == 401:  # noqa: PLR2004 -- as named
        return Rejected()
    if status != 200:  # noqa: PLR2004 -- as named
        return Unclear(is_missing=status == 404)  # noqa: PLR2004 -- as named
    client_id = _at(document, field.split("."))
    if client_id is None:
        return Unclear()
    return Named(client_id, None if _names_a_person(document) else _organization(document))


def _at(document: object, path: Sequence[str]) -> str | None:
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document.strip() or None if isinstance(document, str) else None


def _organization(document: Mapping[str, Any]) -> str | None:
    """Return the token's organization; None if its home organization is another one."""
    works_in = _at(document, ("organization", "id"))
    home = _at(document, ("homeOrganization", "id"))
    return works_in if home in {None, works_in} else None


def _names_a_person(value: object, depth: int = 0) -> bool:
    """True if the answer names a user, or another grant than a service's.

    Also True if the answer is nested deeper than any answer of the vendor.
    """
    if depth > _MAX_DEPTH:
        return True
    if isinstance(value, Mapping):
        return any(
            (bool(inner) and any(word in name.lower() for word in _PERSONS))
            or (name.lower().endswith("granttype") and _is_other_grant(inner))
            or _names_a_person(inner, depth + 1)
            for name, inner in value.items()
        )
    return isinstance(value, list) and any(_names_a_person(one, depth + 1) for one in value)


def _is_other_grant(value: object) -> bool:
    return bool(value) and "".join(filter(str.isalpha, str(value).lower())) not in _GRANTS


class Pace:
    """Allows a number of questions per second."""

    def __init__(self) -> None:
        self._asked: deque[float] = deque((-inf,) * A_SECOND, maxlen=A_SECOND)

    def next_at(self) -> float:
        """Return when the next question may be asked."""
        return self._asked[0] + _WINDOW

    def note(self, now: float) -> None:
        """Count a question."""
        self._asked.append(now)

    def take_back(self) -> None:
        """Uncount the last question: it was not asked after all."""
        self._asked.pop()
        self._asked.appendleft(-inf)


_T = TypeVar("_T", bound=Hashable)


class Places(Generic[_T]):
    """Items that wait for a place: addresses take turns, each first in, first out."""

    def __init__(self, limit: int = WAITING) -> None:
        self._limit = limit
        self._waiting: dict[str, dict[_T, None]] = {}  # addresses in the order of their turns

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._waiting.values())

    def __iter__(self) -> Iterator[_T]:
        for waiting in self._waiting.values():
            yield from waiting

    def add(self, peer: str, item: _T) -> _T | None:
        """Let an item wait. Return the one that finds no room: this one, or another in its place.

        If it is full, the last item of the address with the most leaves, unless that address is the
        new item's own.
        """
        leaving = None
        if len(self) >= self._limit:
            longest = max(self._waiting, key=lambda address: len(self._waiting[address]))
            if len(self._waiting[longest]) <= len(self._waiting.get(peer, ())) + 1:
                return item
            leaving = next(reversed(self._waiting[longest]))
            self.discard(leaving)
        self._waiting.setdefault(peer, {})[item] = None
        return leaving

    def pop(self) -> _T:
        """Take the next one, whose address is then last in turn."""
        peer = next(iter(self._waiting))
        waiting = self._waiting.pop(peer)
        item = next(iter(waiting))
        del waiting[item]
        if waiting:
            self._waiting[peer] = waiting
        return item

    def discard(self, item: _T) -> bool:
        """Remove an item; False if it was not waiting."""
        for peer, waiting in self._waiting.items():
            if item in waiting:
                del waiting[item]
                if not waiting:
                    del self._waiting[peer]
                return True
        return False


class Switch:
    """Switches off for a while after several answers that the API has no such call."""

    def __init__(self) -> None:
        self._missing = 0
        self._off_until = -inf

    def is_on(self, now: float) -> bool:
        return now >= self._off_until

    def note(self, finding: Finding | None, now: float) -> bool:
        """Count an answer, None for none; return True if it switches asking off."""
        is_missing = isinstance(finding, Unclear) and finding.is_missing
        self._missing = self._missing + 1 if is_missing else 0
        if self._missing < _OFF_AFTER:
            return False
        self._missing, self._off_until = 0, now + _OFF_FOR
        return True
