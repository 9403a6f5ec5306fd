"""What replicas share about incidents: which one opens it, which ones still see its trouble.

With `memory://` there is one replica, and `NoLedger` serves it. The shared ledger is in
store/incidents.py. While the store is down each replica acts alone: two incidents are better than
none.
"""

from collections.abc import Collection
from typing import Protocol


class Ledger(Protocol):
    async def lock(self, incident: str) -> bool:
        """Take the right to open that incident, for a while; False if another replica has it."""
        ...

    async def unlock(self, incident: str) -> None:
        """Give that right back."""
        ...

    async def see(self, incidents: Collection[str]) -> None:
        """Note that this replica sees the trouble of those incidents."""
        ...

    async def leave(self, incident: str) -> bool:
        """Note that this replica no longer sees that trouble; True if no other one does."""
        ...

    async def keep(self, incident: str) -> None:
        """Note that the incident was announced to a desk that keeps no list of them."""
        ...

    async def forget(self, incident: str) -> None:
        """Note that its end was announced."""
        ...

    async def kept(self, incidents: Collection[str]) -> Collection[str]:
        """Return those whose start was announced, and not their end."""
        ...


class NoLedger:
    """The ledger of a single replica: it opens everything, and remembers nothing."""

    async def lock(self, incident: str) -> bool:  # noqa: ARG002
        """Take the right to open: there is no other replica."""
        return True

    async def unlock(self, incident: str) -> None:
        """Give it back: no other replica waits for it."""

    async def see(self, incidents: Collection[str]) -> None:
        """Do nothing: there is no other replica."""

    async def leave(self, incident: str) -> bool:  # noqa: ARG002
        """Return True: no other replica sees it."""
        return True

    async def keep(self, incident: str) -> None:
        """Remember nothing: a restart forgets it anyway."""

    async def forget(self, incident: str) -> None:
        """Nothing was remembered."""

    async def kept(self, incidents: Collection[str]) -> Collection[str]:  # noqa: ARG002
        """Nothing was remembered."""
        return ()
