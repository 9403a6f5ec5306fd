"""A hold that is kept: its phase, and the slot that is its probe.

The phases and what changes them are in rules/hold.py; here is which slot is the probe, which a rule
cannot know.
"""

from proxy.pacing.slot import Slot
from proxy.rules.hold import HoldState


class Holding:
    """Whether an account is open, held or probing."""

    __slots__ = ("_probe", "state")

    def __init__(self) -> None:
        self.state = HoldState()
        self._probe: Slot | None = None

    def __repr__(self) -> str:
        return f"<Holding {self.state}>"

    def may_leave(self, slot: Slot, now: float) -> bool:
        """True if no hold keeps that slot's request from leaving."""
        return self.state.may_leave(now, is_probe=slot is self._probe)

    def granted(self, slot: Slot) -> None:
        """Note a slot that was granted: on hold, it is the probe."""
        if self.state.hold is not None:
            self._probe = slot
            self.state = self.state.granted()

    def refusals_after(self, slot: Slot) -> int:
        """Return the refusals in a row after one of `slot` that names no time."""
        return self.state.refusals_after(is_probe=slot is self._probe)

    def hold(self, *, now: float, until: float, refusals: int = 0) -> bool:
        """Begin or prolong the hold; True if it begins."""
        begins = self.state.hold is None
        self.state = self.state.refused(now=now, until=until, refusals=refusals)
        return begins

    def ended(self, slot: Slot, now: float, *, accepted: bool) -> bool:
        """Note that a slot is over; True if that ends the hold."""
        if slot is not self._probe:
            return False
        self._probe = None
        self.state = self.state.probe_ended(now, accepted=accepted)
        return self.state.hold is None
