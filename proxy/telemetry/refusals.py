"""The last refusals of each account, for people to read; a few each, and none of a caller's words.

Refusals of one type are one group, with their number. A group ends ten minutes after its last one:
the next of that type begins a new group. Accounts are those that metrics tell apart: configured
names, and `other` for everyone else.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from proxy.problems import Problem
from proxy.rules.short_names import ShownAccounts
from proxy.rules.state import Refusal
from proxy.settings import Settings

_KEPT: Final = 8  # groups of an account
_GROUP_SECONDS: Final = 600.0


class Refusals:
    """Remembers what was refused last, by account and type."""

    def __init__(self) -> None:
        self._by_account: dict[str, dict[str, Refusal]] = {}  # the newest group last

    def note(self, account: str, problem: Problem, *, at: float) -> None:
        """Remember a refusal at that wall time."""
        groups = self._by_account.setdefault(account, {})
        last = groups.pop(problem.type, None)
        count, since = 1, at
        if last is not None and at - last.at <= _GROUP_SECONDS:
            count, since = last.count + 1, last.since
        groups[problem.type] = Refusal(
            at=at, type=problem.type, detail=problem.detail, count=count, since=since
        )
        if len(groups) > _KEPT:
            del groups[next(iter(groups))]

    def apply(self, settings: Settings) -> None:
        """Forget those of accounts that are no longer configured."""
        names = ShownAccounts(account.name for account in settings.accounts)
        self._by_account = {
            account: groups for account, groups in self._by_account.items() if account in names
        }

    def all(self) -> Mapping[str, Sequence[Refusal]]:
        """Return what is remembered, the newest group first."""
        return {
            account: tuple(reversed(groups.values()))
            for account, groups in self._by_account.items()
        }
