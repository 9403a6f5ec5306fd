"""What the reporter needs of a desk, whatever its format."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy.rules.episodes import Episode


@dataclass(frozen=True, slots=True)
class Known:
    """An incident that is open at the desk: its name there, and the scopes it says are missing."""

    handle: str
    scopes: frozenset[str] = frozenset()


class Desk(Protocol):
    """Each method raises `DeskDown` or `DeskRefuses`."""

    @property
    def takes_updates(self) -> bool:
        """True if the desk wants updates between start and end."""
        ...

    async def find(self, incidents: Collection[str]) -> Mapping[str, Known]:
        """Return those of these incidents that are open."""
        ...

    async def find_one(self, incident: str) -> Known | None:
        """Return that incident if it is open."""
        ...

    async def open(self, episode: Episode) -> str:
        """Open an incident, and return the desk's name for it."""
        ...

    async def update(self, episode: Episode) -> None:
        """Add the news to the incident."""
        ...

    async def close(self, episode: Episode) -> None:
        """Close it."""
        ...
