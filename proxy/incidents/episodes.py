"""The episodes of trouble that are kept: those not over, and those the desk must still be told.

Invariants: of each incident at most one episode is not over. The steps of one incident are due in
the order of its episodes.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf

from proxy.rules.episodes import Episode, surplus
from proxy.rules.incidents import (
    Sighting,
    Trouble,
)


class Episodes:
    """Keeps episodes by number; later episodes of the same incident have other numbers.

    `is_known` says whether the account of an incident is still configured.
    """

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        self._episodes: dict[int, Episode] = {}
        self._present: dict[str, int] = {}  # of each incident the episode that is not over
        self._next_number = 0
        self.under_way: int | None = None  # the episode whose step is taken now; it is not given up

    def __repr__(self) -> str:
        return f"<Episodes: {len(self._episodes)}, {len(self._present)} not over>"

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, number: int) -> Episode:
        return self._episodes[number]

    @property
    def present(self) -> Mapping[str, int]:
        """The incidents whose trouble is not over, with the numbers of their episodes."""
        return self._present

    def confirmed(self) -> frozenset[str]:
        """Return the incidents whose trouble was seen here, and is not over."""
        present = self._present.items()
        return frozenset(name for name, number in present if self._episodes[number].confirmed)

    def take(
        self, sightings: Mapping[str, Sighting], *, now: float, wall: float
    ) -> Sequence[Episode]:
        """Update the episodes; return those that are given up."""
        for incident, number in [*self._present.items()]:
            episode = self._episodes[number]
            sighting = sightings.get(incident)
            if sighting is not None:
                self.put(number, episode.after_look(sighting, now=now, wall=wall))
            elif not self._is_known(incident):
                notes = "The account is no longer configured."
                self.put(number, episode.over(notes, now=now, wall=wall))
        for incident, sighting in sightings.items():
            if isinstance(sighting, Trouble) and incident not in self._present:
                self.begin(Episode(id=incident, trouble=sighting, begun=now))
        return self._give_up(now)

    def _give_up(self, now: float) -> Sequence[Episode]:
        numbers = {
            id(episode): number
            for number, episode in self._episodes.items()
            if number != self.under_way
        }
        given_up = surplus((self._episodes[number] for number in numbers.values()), now)
        for episode in given_up:
            self.drop(numbers[id(episode)])
        return given_up

    def begin(self, episode: Episode) -> None:
        """Keep the episode of an incident that has none yet, or none that is not over."""
        number, self._next_number = self._next_number, self._next_number + 1
        self._present[episode.id] = number
        self._episodes[number] = episode

    def put(self, number: int, episode: Episode) -> None:
        """Store the changed episode."""
        self._episodes[number] = episode
        if episode.is_over and self._present.get(episode.id) == number:
            del self._present[episode.id]

    def drop(self, number: int) -> None:
        """Keep it no longer."""
        episode = self._episodes.pop(number)
        if self._present.get(episode.id) == number:
            del self._present[episode.id]

    def next_step(self) -> tuple[int | None, float]:
        """Return the episode whose step is due first, and when that is."""
        best: tuple[float, int | None] = (inf, None)
        waiting: set[str] = set()
        for number, episode in self._episodes.items():
            if episode.id not in waiting and episode.due() < best[0]:
                best = episode.due(), number
            if episode.step() is not None:
                waiting.add(episode.id)  # a later episode of the same incident comes after it
        return best[1], best[0]
