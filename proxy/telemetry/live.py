"""Metrics that are read from the live state and not counted: depths, holds, tokens, connections.

The admin port takes a snapshot on the event loop and puts it here; the thread of the scrape makes
the metrics from it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.rules.state import AccountState
from proxy.telemetry.exposition import Family, Rows, harmless

_Rows = Sequence[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state at one moment, `taken_at` in seconds since the epoch.

    `connections` to the API are the active and the idle ones.
    """

    taken_at: float = 0.0
    accounts: Sequence[AccountState] = ()
    connections: tuple[int, int] = (0, 0)
    is_stalled: bool = False


class Live(Collector):
    """Gauges made from the latest snapshot, and counters that live elsewhere."""

    def __init__(self, log_lines_dropped: Callable[[], int]) -> None:
        self.snapshot = Snapshot()
        self._log_lines_dropped = log_lines_dropped

    def families(self) -> Iterator[Rows]:
        """Yield each metric; called in the thread of the scrape."""
        now, accounts = self.snapshot, self.snapshot.accounts
        tokens = [(one.name, one.token) for one in accounts if one.token is not None]
        queues = [((one.name, queue.name), queue) for one in accounts for queue in one.routes]

        def gauge(name: str, text: str, *labels: str, rows: _Rows) -> Rows:
            return Rows(Family(f"export_proxy_{name}", "gauge", text, labels), rows)

        def of_account(name: str, text: str, rows: _Rows) -> Rows:
            return gauge(name, text, "account", rows=rows)

        def of_queue(name: str, text: str, rows: _Rows) -> Rows:
            return gauge(name, text, "account", "route", rows=rows)

        yield of_queue(
            "queue_depth",
            "Requests in the queue.",
            [(key, queue.queue_depth) for key, queue in queues],
        )
        yield of_queue(
            "queue_oldest_seconds",
            "How long the first in the queue has waited.",
            [(key, queue.oldest_seconds) for key, queue in queues],
        )
        yield of_queue(
            "queue_seconds",
            "What a request that comes now would wait: the time to clear the queue.",
            [(key, queue.predicted_seconds) for key, queue in queues],
        )
        yield of_queue(
            "interval_seconds",
            "Seconds between two sends, as configured or ordered now.",
            [(key, queue.interval) for key, queue in queues],
        )
        yield of_account(
            "in_flight",
            "Sent, and the answer not complete.",
            [((o.name,), o.in_flight) for o in accounts],
        )
        yield of_account(
            "hold_remaining_seconds",
            "Seconds until a hold of all routes ends.",
            [((one.name,), one.hold_remaining_seconds) for one in accounts],
        )
        yield of_account(
            "hold_named_seconds",
            "What is left of the wait the API named, on the route that waits longest.",
            [((one.name,), one.hold_named_seconds) for one in accounts],
        )
        yield of_account(
            "paused",
            "1 while an operator's pause lasts.",
            [((one.name,), one.paused is not None) for one in accounts],
        )
        yield of_account(
            "quota_remaining",
            "Requests left in the window the API announced.",
            [
                ((one.name,), one.quota_remaining)
                for one in accounts
                if one.quota_remaining is not None
            ],
        )
        yield of_account(
            "token_expiry_timestamp_seconds",
            "When the account's token expires.",
            [
                ((name,), now.taken_at + token.expires_in)
                for name, token in tokens
                if token.expires_in is not None
            ],
        )
        yield of_account(
            "token_missing_scopes",
            "Scopes that were needed and fresh tokens lack.",
            [((name,), len(token.missing)) for name, token in tokens],
        )
        yield of_account(
            "token_rejected",
            "1 while the login server refuses the credentials.",
            [((name,), token.rejected) for name, token in tokens],
        )
        active, idle = now.connections
        yield gauge(
            "upstream_connections",
            "Connections to the API.",
            "state",
            rows=[(("active",), active), (("idle",), idle)],
        )
        yield gauge(
            "dispatcher_stalled",
            "1 while a slot was due more than 2 s ago and was not offered.",
            rows=[((), now.is_stalled)],
        )
        yield Rows(
            Family(
                "export_proxy_log_lines_dropped",
                "counter",
                "Log lines above the limit, or that could not be written.",
                (),
            ),
            [((), self._log_lines_dropped())],
        )

    def collect(self) -> Iterable[Metric]:
        """Yield the same metrics to a reader of the registry."""
        for family, rows in ((each.family, each.rows) for each in self.families()):
            is_counter = family.kind == "counter"
            make = CounterMetricFamily if is_counter else GaugeMetricFamily
            metric = make(family.name, family.text, labels=family.labels)
            for values, value in rows:
                metric.add_metric([harmless(each) for each in values], value)
            yield metric

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering does not collect."""
        return iter(())
