"""Metrics of the process itself, under the names every Prometheus client gives them.

`process_*` (CPU, memory, descriptors, start) and `python_gc_*` (the garbage collector) are read
when they are asked for; the library's collectors know how.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

from proxy.telemetry.exposition import Family, Rows


class ProcessMetrics:
    """Reads the state of the process at each scrape."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        GCCollector(self._registry)
        ProcessCollector(registry=self._registry)

    def families(self) -> Iterator[Rows]:
        """Yield each metric; called in the thread of the scrape."""
        for metric in self._registry.collect():
            samples = [one for one in metric.samples if not one.name.endswith("_created")]
            labels = tuple(samples[0].labels) if samples else ()
            family = Family(metric.name, metric.type, metric.documentation, labels)
            yield Rows(family, [(tuple(one.labels.values()), one.value) for one in samples])
