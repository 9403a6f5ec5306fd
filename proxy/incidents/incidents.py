"""The reporting of incidents as a whole: the configuration switches it on and off.

A reload that changes where or how incidents are sent starts again, and looks up the open incidents
at the new desk. Any other change keeps the state.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from proxy.clock import Clock
from proxy.incidents.calls import DeskClient
from proxy.incidents.ledger import Ledger
from proxy.incidents.reporter import Reporter
from proxy.incidents.servicenow import IncidentTable
from proxy.incidents.watch import Watch
from proxy.incidents.webhook import Webhook
from proxy.settings import Incidents as IncidentSettings
from proxy.settings import Settings
from proxy.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class _Running:
    settings: IncidentSettings
    client: DeskClient
    desk: IncidentTable | Webhook
    tasks: tuple["asyncio.Task[None]", ...]


class Incidents:
    """Reports trouble to a desk, as long as one is configured."""

    def __init__(  # noqa: PLR0913 -- the parts it works with, each by name
        self,
        settings: Settings,
        watch: Watch,
        ledger: Ledger,
        *,
        clock: Clock,
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        self.watch = watch
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._running: _Running | None = None
        self._ended: list[_Running] = []
        self._begin(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on."""
        self.watch.apply(settings)
        running, wanted = self._running, settings.incidents
        if running is not None and wanted is not None and _is_same_desk(running.settings, wanted):
            running.client.apply(settings.upstream)
            running.desk.apply(wanted)
            return
        if running is not None:
            self._end(running)
        self._begin(settings)

    def _begin(self, settings: Settings) -> None:
        wanted = settings.incidents
        self._running = None
        if wanted is None:
            return
        self._metrics.incidents.begin()
        client = DeskClient(wanted, settings.upstream, clock=self._clock)
        desk: IncidentTable | Webhook
        if wanted.format == "servicenow":
            desk = IncidentTable(wanted, client)
        else:
            desk = Webhook(wanted, client, self._ledger, clock=self._clock)
        reporter = Reporter(
            self.watch, desk, self._ledger, clock=self._clock, metrics=self._metrics
        )
        tasks = (self._spawn(reporter.observe()), self._spawn(reporter.deliver()))
        self._running = _Running(wanted, client, desk, tasks)

    def _end(self, running: _Running) -> None:
        for task in running.tasks:
            task.cancel()
        self._ended.append(running)

    async def close(self) -> None:
        """Stop reporting, and close the connections."""
        if self._running is not None:
            self._end(self._running)
        for running in self._ended:
            await running.client.close()


def _is_same_desk(one: IncidentSettings, other: IncidentSettings) -> bool:
    return (one.url, one.format) == (other.url, other.format)
