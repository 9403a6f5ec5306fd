"""The families of counted series: each is made once, with its name, help and labels."""

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.telemetry.buckets import DURATIONS
from proxy.telemetry.exposition import Family, Histograms, Numbers


class Families(Collector):
    """Makes families, and keeps them in that order; `wall` stamps exemplars."""

    def __init__(self, wall: Callable[[], float] = lambda: 0.0) -> None:
        self.all: list[Numbers | Histograms] = []
        self._wall = wall

    def counter(self, name: str, text: str, *labels: str) -> Numbers:
        """Make a counter; its series begin at 0."""
        return self._numbers("counter", name, text, labels)

    def gauge(self, name: str, text: str, *labels: str) -> Numbers:
        """Make a gauge."""
        return self._numbers("gauge", name, text, labels)

    def histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = DURATIONS
    ) -> Histograms:
        """Make a histogram with these bounds."""
        made = Histograms(_family(name, "histogram", text, labels), buckets, self._wall)
        self.all.append(made)
        return made

    def _numbers(self, kind: str, name: str, text: str, labels: tuple[str, ...]) -> Numbers:
        made = Numbers(_family(name, kind, text, labels))
        self.all.append(made)
        return made

    def collect(self) -> Iterator[Metric]:
        """Yield what is counted to a reader of the registry."""
        for series in self.all:
            yield series.metric()

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering does not collect."""
        return iter(())


def _family(name: str, kind: str, text: str, labels: tuple[str, ...]) -> Family:
    return Family(f"export_proxy_{name}", kind, text, labels)
