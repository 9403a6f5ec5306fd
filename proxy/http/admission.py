"""Which connections of callers are accepted: limits in all and per peer.

A connection counts from the moment it is accepted, before its TLS handshake, until it is gone. A
refused connection is closed unanswered: an answer might not arrive, and would cost the resources
that are short.
"""

import resource
from collections import Counter
from collections.abc import Callable
from typing import Final

from proxy.rules.shares import FEW_CONNECTIONS, Reason, why_refused
from proxy.settings import Limits

_SPARE: Final = 32  # descriptors that are left for files, the admin port and the API
_SPARE_SHARE: Final = 4  # this part of all descriptors, if there are few


class Place:
    """The place of a counted connection; giving it back twice does no harm."""

    __slots__ = ("_admission", "_is_taken", "_peer")

    def __init__(self, admission: "Admission", peer: str) -> None:
        self._admission = admission
        self._peer = peer
        self._is_taken = True

    def give_back(self) -> None:
        """Stop counting the connection."""
        if self._is_taken:
            self._is_taken = False
            self._admission.release(self._peer)


class Admission:
    """Counts connections; `on_refused` gets the reason for each refused one."""

    def __init__(self, limits: Callable[[], Limits], on_refused: Callable[[Reason], None]) -> None:
        self.on_refused = on_refused
        self._limits = limits
        self._held = 0
        self._held_by: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """How many connections there are."""
        return self._held

    def take(self, peer: str, descriptor: int) -> Place | None:
        """Count a connection of that address; None, without counting it, if it is one too many.

        The kernel gives out the lowest free descriptor, so a high one tells how few are left.
        """
        limits = self._limits()
        reason: Reason | None
        if descriptor >= _last_descriptor():
            reason = "descriptor"
        else:
            reason = why_refused(
                used=self._held,
                whole=limits.max_connections,
                held=self._held_by[peer],
                bound=limits.max_connections_per_peer,
                little=FEW_CONNECTIONS,
            )
        if reason is not None:
            self.on_refused(reason)
            return None
        return self.count(peer)

    def count(self, peer: str) -> Place:
        """Count a connection of that address, whatever the limits."""
        self._held += 1
        self._held_by[peer] += 1
        return Place(self, peer)

    def release(self, peer: str) -> None:
        """Count one connection of that address less; for `Place`."""
        self._held -= 1
        self._held_by[peer] -= 1
        if not self._held_by[peer]:
            del self._held_by[peer]


def _last_descriptor() -> float:
    """Return the lowest descriptor number at which connections are refused."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return float("inf")
    return soft - min(_SPARE, soft // _SPARE_SHARE)
