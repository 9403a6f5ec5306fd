"""Holds of an account or of one of its routes: reported to all replicas, and read from the store.

The store keeps a hold with the account's leases. An answer about a lease says how much of the hold
is left, so only an unpaced queue, which takes no leases, must ask.
"""

from collections.abc import Callable

from proxy.pacing.leases import FREE, HoldLeft, SharedQueue
from proxy.store.script import LeaseStatus, Name, Op, Script
from proxy.store.seat import name_of, obey
from proxy.store.wire import StoreDown


class SharedHolds:
    """Tells the other replicas about holds, and asks for the holds of others.

    `found_new_state` gets an account that the store did not know, and when its state began.
    """

    def __init__(self, script: Script, found_new_state: Callable[[str, int], object]) -> None:
        self._script = script
        self._found_new_state = found_new_state
        self._looking: set[Name] = set()

    def __repr__(self) -> str:
        return f"<SharedHolds {len(self._looking)} asked for>"

    def tell(self, key: str, route: str, left: HoldLeft) -> None:
        """Tell all replicas; if the store is down, once it is back."""
        self._script.run(
            Op.HOLD,
            key,
            route,
            span=max(0.0, left.seconds),
            named=left.named,
            answered=self._answered(key),
        )

    def tell_end(self, key: str, route: str) -> None:
        """Tell all replicas that a hold is over before the API's named wait was."""
        self._script.run(Op.OPEN, key, route, answered=self._answered(key))

    def _answered(self, key: str) -> Callable[[LeaseStatus | StoreDown], None]:
        def answered(status: LeaseStatus | StoreDown) -> None:
            if not isinstance(status, StoreDown) and status.stamp.is_first:
                self._found_new_state(key, status.stamp.born)

        return answered

    def look(self, queue: SharedQueue) -> None:
        """Ask the store for a hold that began before this replica used the account."""
        name = name_of(queue)
        if queue.lease is FREE or name in self._looking:
            return
        self._looking.add(name)

        def answered(status: LeaseStatus | StoreDown) -> None:
            self._looking.discard(name)
            if not isinstance(status, StoreDown) and not queue.paced:
                queue.lease_granted(FREE)
                obey(queue, status)
                queue.reevaluate()

        self._script.run(Op.LOOK, *name, answered=answered)
