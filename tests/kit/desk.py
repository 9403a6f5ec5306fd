"""A reporter on a fake clock in front of a desk on real sockets, and what a test may see wrong.

The incident table is the simulator's. Time passes only as a test lets it, so that an hour of pauses
takes no time; the calls themselves are real.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from proxy.incidents.calls import DeskClient
from proxy.incidents.ledger import Ledger, NoLedger
from proxy.incidents.reporter import Reporter
from proxy.incidents.servicenow import IncidentTable
from proxy.incidents.watch import Watch
from proxy.incidents.webhook import Webhook
from proxy.rules.incidents import (
    KINDS,
    Sighting,
    Trouble,
    TroubleKind,
    incident_id,
)
from proxy.settings import Incidents, Upstream
from proxy.simulator import SigningKey, Simulator, SimulatorSettings
from proxy.telemetry.metrics import Metrics
from tests.kit.clock import FakeClock
from tests.kit.process import until

LOGIN = ("proxy", "planted-desk-password")
KEY = SigningKey.generate()
HOLD = incident_id("id-of-london", "hold")


@dataclass
class Sight:
    """In place of a watch: the sightings that a test sets."""

    sightings: dict[str, Sighting] = field(default_factory=dict)
    awaited: dict[str, frozenset[str]] = field(default_factory=dict)
    pause: float = 1.0

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(incident_id("id-of-london", kind) for kind in KINDS)

    def owner(self, incident: str) -> tuple[str, TroubleKind] | None:
        owners = {incident_id("id-of-london", kind): ("london", kind) for kind in KINDS}
        return owners.get(incident)

    async def look(self, _: object) -> dict[str, Sighting]:
        return dict(self.sightings)

    def await_scopes(self, incident: str, scopes: frozenset[str]) -> None:
        self.awaited[incident] = scopes


def trouble(kind: TroubleKind = "hold", *, mark: object = None, **fields: Any) -> Trouble:
    return Trouble(
        account="london", kind=kind, since=0.0, detail=f"detail {mark}", mark=mark, **fields
    )


class Telling:
    """A reporter that is at work; `sight` is what it sees."""

    def __init__(self, clock: FakeClock, sight: Sight, metrics: CollectorRegistry) -> None:
        self.clock = clock
        self.sight = sight
        self._metrics = metrics

    async def until(self, question: Callable[[], bool], *, step: float = 1.0) -> None:
        """Let time pass, a second at a time, until that is so."""

        async def passed() -> bool:
            await self.clock.advance(step)
            return question()

        await until(passed)

    async def settle(self, seconds: float) -> None:
        """Let so much time pass, with room for calls on real sockets."""
        for _ in range(20):
            await self.clock.advance(seconds / 20)
            await asyncio.sleep(0.005)  # noqa: TID251 -- a call of a real socket may be under way

    def count(self, kind: TroubleKind | str, outcome: str) -> float:
        labels = {"kind": kind, "outcome": outcome}
        return self._metrics.get_sample_value("export_proxy_incidents_total", labels) or 0.0


def desk_settings(url: str, folder: Path, **keys: Any) -> Incidents:
    """Settings with the right credentials in a file."""
    file = folder / "credentials.json"
    if not file.exists():
        document = (
            {"hmac_key": "planted-key"}
            if keys.get("format") == "flat"
            else dict(zip(("username", "password"), LOGIN, strict=True))
        )
        file.write_text(json.dumps(document))
    return Incidents.model_validate({"url": url, "credentials_file": file, **keys})


@asynccontextmanager
async def a_table() -> AsyncIterator[tuple[Simulator, str]]:
    """The strict table on a port."""
    clock = FakeClock()
    settings = SimulatorSettings(incident_login=LOGIN)
    simulator = Simulator(settings, monotonic=clock.monotonic, wall=clock.wall, key=KEY)
    async with simulator.serve("127.0.0.1") as server:
        yield simulator, server.url


@asynccontextmanager
async def telling(
    settings: Incidents,
    sight: Sight,
    *,
    clock: FakeClock | None = None,
    ledger: Ledger | None = None,
) -> AsyncIterator[Telling]:
    """Tell the desk of those settings what `sight` sees."""
    clock = clock or FakeClock()
    ledger = ledger or NoLedger()
    upstream = Upstream(api_url="http://localhost", login_url="http://localhost")
    client = DeskClient(settings, upstream, clock=clock)
    desk: IncidentTable | Webhook
    if settings.format == "flat":
        desk = Webhook(settings, client, ledger, clock=clock)
    else:
        desk = IncidentTable(settings, client)
    registry = CollectorRegistry()
    reporter = Reporter(cast("Watch", sight), desk, ledger, clock=clock, metrics=Metrics(registry))
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(reporter.observe()),
            tasks.create_task(reporter.deliver()),
        ]
        try:
            yield Telling(clock, sight, registry)
        finally:
            for task in running:
                task.cancel()
            await client.close()
