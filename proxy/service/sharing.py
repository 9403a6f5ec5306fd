"""What replicas share, made for one proxy: in Redis if a store is configured, else in memory."""

import asyncio
import random

from proxy.clock import Clock
from proxy.incidents.ledger import Ledger, NoLedger
from proxy.pacing.leases import Alone, Leases
from proxy.pacing.operators import Operators
from proxy.settings import Settings
from proxy.store.connection import Connection
from proxy.store.incidents import SharedLedger
from proxy.store.issued_tokens import SharedTokens
from proxy.store.leases import SharedLeases
from proxy.store.orders import SharedOrders
from proxy.store.repeats import LocalRepeats, RepeatStore
from proxy.store.shared_repeats import SharedRepeats
from proxy.telemetry.metrics import Metrics


class Sharing:
    """Makes the parts that replicas share; `store` is the connection to Redis, if there is one."""

    def __init__(
        self, settings: Settings, clock: Clock, metrics: Metrics, tasks: asyncio.TaskGroup
    ) -> None:
        self.store: Connection | None = None
        self._clock = clock
        self._metrics = metrics
        self._spawn = tasks.create_task
        self._leases: SharedLeases | None = None
        self._listening: asyncio.Task[None] | None = None
        if settings.store.is_shared:
            self.store = Connection(settings.store, clock=clock, metrics=metrics, spawn=self._spawn)
            self._leases = SharedLeases(
                self.store, clock=clock, metrics=metrics, random=random.random
            )

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on; only a restart adds or removes a store."""
        if self.store is not None:
            self.store.apply(settings.store)

    def leases(self) -> Leases:
        """Return the leases, which decide which replica may send."""
        return Alone() if self._leases is None else self._leases

    def listen(self, operators: Operators) -> None:
        """Listen to the other replicas, and obey what operators order there."""
        if self.store is None or self._leases is None:
            return
        orders = SharedOrders(self.store, clock=self._clock, changed=operators.obey_shared)
        operators.store = orders
        self._listening = self._spawn(self.store.listen(self._leases.inbox, orders))

    def tokens(self) -> SharedTokens | None:
        """Return the table of issued tokens that replicas share."""
        if self.store is None:
            return None
        return SharedTokens(self.store, clock=self._clock, spawn=self._spawn)

    def repeats(self, settings: Settings) -> RepeatStore:
        """Return where the records of sent requests are kept."""
        local = LocalRepeats(
            settings.repeats, clock=self._clock, on_evicted=self._metrics.repeat_evicted
        )
        return local if self.store is None else SharedRepeats(local, self.store, clock=self._clock)

    def ledger(self) -> Ledger:
        """Return the ledger of incidents that replicas share."""
        return NoLedger() if self.store is None else SharedLedger(self.store, clock=self._clock)

    async def close(self) -> None:
        """Stop listening, and close the connection to the store."""
        if self._listening is not None:
            self._listening.cancel()
        if self.store is not None:
            await self.store.close()
