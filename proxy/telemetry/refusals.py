"""The last refusals of each account, for people to read; a few each, and none of a caller's words.

Accounts are those that metrics tell apart: configured names, and `other` for everyone else.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from proxy.problems import Problem
from proxy.rules.state import OTHER, Refusal

_KEPT: Final = 8


class Refusals:
    """Remembers what was refused last, by account."""

    def __init__(self) -> None:
        self._by_account: dict[str, deque[Refusal]] = {}

    def note(self, account: str, problem: Problem, *, at: float) -> None:
        """Remember a refusal at that wall time."""
        kept = self._by_account.setdefault(account, deque(maxlen=_KEPT))
        kept.appendleft(Refusal(at=at, type=problem.type, detail=problem.detail))

    def keep(self, accounts: Iterable[str]) -> None:
        """Forget those of accounts that are configured no more."""
        names = {OTHER, *accounts}
        self._by_account = {
            account: kept for account, kept in self._by_account.items() if account in names
        }

    def all(self) -> Mapping[str, Sequence[Refusal]]:
        """Return what is remembered, the newest first."""
        return {account: tuple(kept) for account, kept in self._by_account.items()}
