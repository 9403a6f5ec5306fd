"""Refused connections: counted, shown for a minute, logged once a minute a reason."""

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from proxy.telemetry.connections import RefusedConnections
from proxy.telemetry.metrics import Metrics
from tests.kit.clock import FakeClock


def counted(registry: CollectorRegistry, reason: str) -> float | None:
    return registry.get_sample_value("export_proxy_connections_refused_total", {"reason": reason})


async def test_each_is_counted_and_there_is_a_line_a_minute_for_each_reason() -> None:
    clock, registry = FakeClock(), CollectorRegistry()
    refused = RefusedConnections(Metrics(registry), clock=clock)
    assert counted(registry, "limit") == 0
    with capture_logs() as lines:
        for _ in range(1000):
            refused.note("limit")
        refused.note("peer")
        await clock.advance(59)
        refused.note("limit")
        await clock.advance(1)
        refused.note("limit")
    assert counted(registry, "limit") == 1002
    assert [(line["event"], line["reason"], line["count"]) for line in lines] == [
        ("connections refused", "limit", 1),
        ("connections refused", "peer", 1),
        ("connections refused", "limit", 1001),
    ]


async def test_those_of_the_last_minute_are_shown() -> None:
    """All of them, whenever the last line was logged; to two seconds."""
    clock = FakeClock()
    refused = RefusedConnections(Metrics(CollectorRegistry()), clock=clock)
    refused.note("handshake")
    await clock.advance(30)
    for _ in range(1000):
        refused.note("handshake")
    await clock.advance(29)
    assert refused.recent() == {"handshake": 1001}
    await clock.advance(4)
    refused.note("handshake")
    assert refused.recent() == {"handshake": 1001}
    await clock.advance(30)
    assert refused.recent() == {"handshake": 1}
    await clock.advance(33)
    assert refused.recent() == {}
