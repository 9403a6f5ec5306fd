"""How many bytes of callers are kept, in all and for each address.

Bodies count from their first byte until they are no longer needed, and so do bytes that come before
their turn. The last tenth is for addresses that hold little, so one address cannot take all the
room.
"""

from proxy.rules.shares import has_room
from proxy.settings import Limits

_LITTLE = 100  # this part of all room


class Room:
    """Counts bytes; `limits` may be replaced at any time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._taken = 0
        self._taken_by: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How many bytes are kept."""
        return self._taken

    def take(self, peer: str, size: int) -> bool:
        """Count `size` more bytes of that address; False, without counting, if there is no room."""
        limits, held = self.limits, self._taken_by.get(peer, 0)
        if not has_room(
            used=self._taken,
            whole=limits.max_buffered,
            held=held,
            little=max(limits.max_buffered / _LITTLE, limits.max_body),  # one body at least
            wanted=size,
        ):
            return False
        self._taken += size
        self._taken_by[peer] = held + size
        return True

    def give_back(self, peer: str, size: int) -> None:
        """Count that many bytes of the address less."""
        self._taken -= size
        self._taken_by[peer] -= size
        if not self._taken_by[peer]:
            del self._taken_by[peer]
