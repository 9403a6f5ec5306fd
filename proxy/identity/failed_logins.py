"""Failed log-ins: how often each address failed in the last minute.

An address that fails too often is refused before its secret is compared, so that nobody can guess
one. The table is bounded: when it is full, it forgets the address whose last failure is oldest.
"""

from typing import Final

from proxy.clock import Clock
from proxy.problems import Problem

_FAILURES: Final = 10  # in a minute; a person mistypes less often, a guess needs far more
_MINUTE: Final = 60.0
_MAX_ENTRIES: Final = 1000  # addresses; each holds ten times at most


class FailedLogins:
    """Times of failed log-ins, by address."""

    def __init__(self, *, clock: Clock, max_entries: int = _MAX_ENTRIES) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._times: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def check(self, peer: str) -> None:
        """Raise the Problem `wait-expired` if the address has failed too often."""
        recent = self._recent(peer)
        if len(recent) >= _FAILURES:
            raise Problem(
                "wait-expired",
                "Too many failed logins.",
                retry_after=recent[0] + _MINUTE - self._clock.monotonic(),
            )

    def note(self, peer: str) -> None:
        """Count a failed log-in of the address."""
        times = [*self._recent(peer), self._clock.monotonic()]
        self._times.pop(peer, None)
        if len(self._times) >= self._max_entries:
            del self._times[next(iter(self._times))]
        self._times[peer] = times

    def _recent(self, peer: str) -> list[float]:
        since = self._clock.monotonic() - _MINUTE
        return [at for at in self._times.get(peer, ()) if at > since]
