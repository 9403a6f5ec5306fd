"""The messages of the other replicas, and what this replica does about each.

Each message is published to this replica or to all. Messages about leases have no effect while the
store is down, since all leases ended then; holds are always obeyed.
"""

from typing import Final

from proxy.clock import Clock
from proxy.store.client import PREFIX
from proxy.store.script import (
    HoldMessage,
    LeaseMessage,
    LostMessage,
    OpenMessage,
    OverMessage,
    Script,
    WantedMessage,
    parse_message,
)
from proxy.store.seat import obey_hold
from proxy.store.seats import Seats
from proxy.store.wire import Wire
from proxy.telemetry.metrics import Metrics

_ALL: Final = PREFIX + "all"


class Inbox:
    """Acts on the messages of the other replicas."""

    def __init__(self, script: Script, seats: Seats, *, clock: Clock, metrics: Metrics) -> None:
        self._script = script
        self._seats = seats
        self._clock = clock
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<Inbox of {self._script.me}>"

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel of this replica, and that of all."""
        return PREFIX + self._script.me, _ALL

    async def self_test(self, wire: Wire) -> None:
        """Run the script once, on a key of its own. Raises StoreDown."""
        await self._script.self_test(wire)

    def receive(self, text: str, since: float) -> None:
        """Act on a message that came after `since` (monotonic)."""
        message = parse_message(text, me=self._script.me)
        if isinstance(message, HoldMessage | OpenMessage):
            self._receive_hold(message)
        elif message is None or not self._seats.is_shared:
            return
        elif isinstance(message, LostMessage):
            self._receive_lost(message.key, message.born)
        else:
            self._receive_for_queue(message, since)

    def _receive_hold(self, message: HoldMessage | OpenMessage) -> None:
        key, name = message.name
        for queue in self._seats.queues_of(key):
            if name in {"", queue.lease_name}:
                if isinstance(message, HoldMessage):
                    obey_hold(queue, message.left, of_route=name != "")
                else:
                    queue.obey_end_of_hold(of_route=name != "")

    def _receive_lost(self, key: str, born: int) -> None:
        """Report again the state of an account that the store had lost when `born` began."""
        has_told = self._seats.report_all_again(key, born)
        if self._seats.report_holds(self._seats.queues_of(key)) or has_told:
            self._metrics.servers.store_bypassed()

    def _receive_for_queue(
        self, message: LeaseMessage | OverMessage | WantedMessage, since: float
    ) -> None:
        seat = self._seats.get(message.name)
        match message:
            case LeaseMessage():
                self._receive_lease(message, since)
            case OverMessage() if seat is not None:
                if seat.lost(message.stamp):
                    self._metrics.servers.store_bypassed()  # the server's clock was set forward
            case WantedMessage() if seat is not None:
                seat.wanted(message.stamp)

    def _receive_lease(self, message: LeaseMessage, since: float) -> None:
        seat, queue = self._seats.get(message.name), self._seats.queue(message.name)
        now = self._clock.monotonic()
        if seat is not None:
            if seat.granted(message.stamp, now + message.wait, since):
                # Not at once: the next message may say that it is over.
                self._clock.call_at(now, seat.queue.reevaluate)
        elif queue is not None:
            self._seats.of(queue).leave()
