"""Failed log-ins: how often an address failed in the last minute as a certain client.

An address that fails too often as a client is refused before its secret is compared, so that no
attacker can guess one; as another client it may still log in. The table is bounded: when it is
full, it forgets the entry whose last failure is oldest.
"""

from typing import Final

from proxy.clock import Clock
from proxy.problems import Problem

_FAILURES: Final = 10  # in a minute; a person mistypes less often, a guess needs far more
_MINUTE: Final = 60.0
_MAX_ENTRIES: Final = 10_000  # of an address and a client; each holds ten times at most


class FailedLogins:
    """Times of failed log-ins, by address and client."""

    def __init__(self, *, clock: Clock, max_entries: int = _MAX_ENTRIES) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._times: dict[tuple[str, str], list[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def check(self, peer: str, client_id: str) -> None:
        """Raise the Problem `wait-expired` if the address has failed too often as that client."""
        recent = self._recent((peer, client_id))
        if len(recent) >= _FAILURES:
            raise Problem(
                "wait-expired",
                "Too many failed log-ins.",
                retry_after=recent[0] + _MINUTE - self._clock.monotonic(),
            )

    def note(self, peer: str, client_id: str) -> None:
        """Count a failed log-in of the address as that client."""
        times = [*self._recent((peer, client_id)), self._clock.monotonic()]
        self._times.pop((peer, client_id), None)
        if len(self._times) >= self._max_entries:
            del self._times[next(iter(self._times))]
        self._times[peer, client_id] = times

    def _recent(self, key: tuple[str, str]) -> list[float]:
        since = self._clock.monotonic() - _MINUTE
        return [at for at in self._times.get(key, ()) if at > since]
