"""The callers of each account with the most requests in the queue, and with the most refusals.

A caller is shown by the name of the key it presented, else by its address and User-Agent. Accounts
are those that metrics show: configured names, short names, and `other`. Memory is bounded: the
queues bound waiting callers, a tally per account the refused ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from proxy.rules.short_names import ShownAccounts
from proxy.rules.tally import CallerCount, RecentTally, top
from proxy.settings import Settings

_SHOWN: Final = 5
_PLACES: Final = 100  # callers of an account whose refusals are counted
_SPAN: Final = 300.0  # seconds: refusals of the last five to ten minutes are shown
_LONGEST_AGENT: Final = 64


@dataclass(frozen=True, slots=True)
class TopCallers:
    """The callers of an account with the most requests in the queue, and recent refusals."""

    waiting: tuple[CallerCount, ...] = ()
    refused: tuple[CallerCount, ...] = ()


NOBODY: Final = TopCallers()


class Callers:
    """Counts the callers of each account that wait, and those that were refused."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, int]] = {}
        self._refused: dict[str, RecentTally] = {}

    def waiting(self, account: str, caller: str) -> "Waiting":
        """Count a request as waiting for as long as the block takes."""
        return Waiting(self._waiting, account, caller)

    def refused(self, account: str, caller: str, now: float) -> None:
        """Count one of our refusals, at that monotonic time."""
        tally = self._refused.get(account)
        if tally is None:
            tally = self._refused[account] = RecentTally(_PLACES, _SPAN)
        tally.add(caller, now)

    def apply(self, settings: Settings) -> None:
        """Forget the refusals of accounts that are no longer configured."""
        names = ShownAccounts(account.name for account in settings.accounts)
        self._refused = {name: tally for name, tally in self._refused.items() if name in names}

    def all(self, now: float) -> Mapping[str, TopCallers]:
        """Return the first callers of each account that has any."""
        return {
            account: TopCallers(
                top(self._waiting.get(account, {}), _SHOWN),
                self._refused[account].top(_SHOWN, now) if account in self._refused else (),
            )
            for account in {*self._waiting, *self._refused}
        }


class Waiting:
    """A block in which a request waits."""

    __slots__ = ("_account", "_all", "_caller")

    def __init__(self, by_account: dict[str, dict[str, int]], account: str, caller: str) -> None:
        self._all = by_account
        self._account = account
        self._caller = caller

    def __enter__(self) -> None:
        counts = self._all.setdefault(self._account, {})
        counts[self._caller] = counts.get(self._caller, 0) + 1

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        counts = self._all[self._account]
        counts[self._caller] -= 1
        if not counts[self._caller]:
            del counts[self._caller]
        if not counts:
            del self._all[self._account]


def anonymous(peer: str, agent: str) -> str:
    """Return how a caller without a named key is shown: its address, and its agent, escaped."""
    escaped = agent.encode("unicode_escape").decode("ascii")[:_LONGEST_AGENT]
    return f"{peer} {escaped}".rstrip()
