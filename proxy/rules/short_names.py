"""Short names for unconfigured clients, for metrics and the status.

A name is the start of the client's account id, which is a hash (digests.py), so that it does not
reveal the client id. The first clients get one and keep it until a restart; the others are shown
together as `other`, so a crowd of clients adds a bounded number of series.
"""

from collections.abc import Container, Iterable
from typing import Final

from proxy.rules.state import OTHER

PREFIX: Final = "client:"  # no configured name has a colon
_DIGITS: Final = 8


def is_configured(label: str) -> bool:
    """True if that label is the name of a configured account."""
    return label != OTHER and not label.startswith(PREFIX)


class ShownAccounts(Container[str]):
    """The labels under which accounts may be shown: configured names, short names, and `other`."""

    def __init__(self, configured: Iterable[str]) -> None:
        self._names = {OTHER, *configured}

    def __contains__(self, label: object) -> bool:
        return isinstance(label, str) and (label in self._names or label.startswith(PREFIX))


class ShortNames:
    """Gives the first clients names of their own; `most` of them at most."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._names: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<ShortNames: {len(self._names)} of {self.most}>"

    def name_of(self, account_id: str) -> str:
        """Return the name of that client, or `other` if all names are given."""
        name = self._names.get(account_id)
        if name is None:
            if len(self._names) >= self.most:
                return OTHER
            name = self._names[account_id] = PREFIX + account_id[:_DIGITS]
        return name
