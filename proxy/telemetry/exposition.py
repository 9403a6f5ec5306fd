"""Series by their label values, and the text of a scrape.

A series is a plain number in a dictionary, by its label values. The library's instruments cost ten
times as much, with a lock and several calls each. To write a scrape the library makes several
objects per sample, hundreds of thousands for a thousand accounts; requests that wait for the
interpreter meanwhile leave late. Here a series keeps its labels as text, and a scrape only adds the
numbers. The text equals what the library writes for the same samples (a test compares the two).

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and OpenMetrics 1.0.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Final, Generic, TypeVar

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.samples import Exemplar

TEXT: Final = CONTENT_TYPE_PLAIN_0_0_4
OPEN_METRICS: Final = CONTENT_TYPE_LATEST

_EXEMPLAR_EVERY: Final = 32
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

_T = TypeVar("_T", float, "Histogram")


@dataclass(frozen=True, slots=True)
class Family:
    """The head of a group of samples; `name` is without the `_total` of a counter."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]

    def head(self, *, is_open: bool) -> str:
        name = self.name if is_open or self.kind != "counter" else f"{self.name}_total"
        return f"# HELP {name} {self.text}\n# TYPE {name} {self.kind}\n"

    def named(self, values: Iterable[str]) -> str:
        """Return label names and values as text for between the braces."""
        pairs = zip(self.labels, values, strict=True)
        return ",".join(f'{label}="{escaped(value)}"' for label, value in pairs)


class _Series(dict[tuple[str, ...], _T], ABC, Generic[_T]):
    """The series of one family, by label values; one that is not there yet begins at nothing.

    If there is an account label, it is the first. Label values come from closed sets; a value that
    is not valid UTF-8 would break every later scrape, so such characters are replaced.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family
        self._names: dict[tuple[str, ...], str] = {}

    @property
    def has_account(self) -> bool:
        """True if the account is the first label."""
        return self._family.labels[:1] == ("account",)

    def keep(self, accounts: Container[str]) -> None:
        """Forget the series of any other account."""
        for values in [values for values in self if values[0] not in accounts]:
            del self[values]
            self._names.pop(values, None)

    def text(self, *, is_open: bool) -> Iterator[str]:
        """Yield the lines; may be called in another thread than that which counts."""
        yield self._family.head(is_open=is_open)
        for values, series in self.copy().items():
            labels = self._names.get(values)
            if labels is None:
                labels = self._names[values] = self._family.named(values)
            yield from self._lines(labels, series, is_open=is_open)

    def metric(self) -> Metric:
        """Return the same for a reader of the library's registry."""
        family = self._family
        metric = Metric(family.name, family.text, family.kind)
        for values, series in self.copy().items():
            labels = dict(zip(family.labels, map(harmless, values), strict=True))
            self._add(metric, labels, series)
        return metric

    @abstractmethod
    def _lines(self, labels: str, series: _T, *, is_open: bool) -> Iterator[str]:
        """Yield the lines of one series."""

    @abstractmethod
    def _add(self, metric: Metric, labels: dict[str, str], series: _T) -> None:
        """Add the samples of one series."""


class Numbers(_Series[float]):
    """A counter's series or a gauge's: add to them, or set them."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._name = family.name + ("_total" if family.kind == "counter" else "")
        if not family.labels:
            self[()] = 0.0

    def __missing__(self, _: tuple[str, ...]) -> float:
        return 0.0

    def _lines(self, labels: str, series: float, *, is_open: bool) -> Iterator[str]:  # noqa: ARG002
        yield f"{self._name}{_braced(labels)} {float(series)!r}\n"

    def _add(self, metric: Metric, labels: dict[str, str], series: float) -> None:
        metric.add_sample(self._name, labels, float(series))


class Histogram:
    """The number of amounts per bucket; one in many leaves its request id as an exemplar.

    `exemplars` holds request id, amount and wall time, by bucket.
    """

    __slots__ = ("_bounds", "_wall", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float], wall: Callable[[], float]) -> None:
        self._bounds = bounds
        self._wall = wall
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, tuple[str, float, float]] = {}

    def observe(self, amount: float, request_id: str = "") -> None:
        """Count an amount in its bucket."""
        bucket = bisect_left(self._bounds, amount)
        count = self.counts[bucket]
        if not count % _EXEMPLAR_EVERY and request_id:
            self.exemplars[bucket] = (request_id, amount, self._wall())
        self.counts[bucket] = count + 1
        self.total += amount


class Histograms(_Series[Histogram]):
    """A histogram's series."""

    def __init__(self, family: Family, bounds: Sequence[float], wall: Callable[[], float]) -> None:
        super().__init__(family)
        self._bounds = bounds
        self._wall = wall

    def __missing__(self, values: tuple[str, ...]) -> Histogram:
        series = self[values] = Histogram(self._bounds, self._wall)
        return series

    def _lines(self, labels: str, series: Histogram, *, is_open: bool) -> Iterator[str]:
        name, total, amount = self._family.name, 0, series.total
        before = f"{name}_bucket{{{labels},le="
        for index, count in enumerate(series.counts):
            total += count
            exemplar = _of_exemplar(series.exemplars.get(index)) if is_open else ""
            yield f'{before}"{self._bound(index)}"}} {total}.0{exemplar}\n'
        yield f"{name}_count{{{labels}}} {total}.0\n"
        yield f"{name}_sum{{{labels}}} {amount!r}\n"

    def _add(self, metric: Metric, labels: dict[str, str], series: Histogram) -> None:
        name, total = self._family.name, 0
        for index, count in enumerate(series.counts):
            total += count
            found, exemplar = series.exemplars.get(index), None
            if found is not None:
                exemplar = Exemplar({"request_id": harmless(found[0])}, *found[1:])
            bucket = {**labels, "le": self._bound(index)}
            metric.add_sample(f"{name}_bucket", bucket, float(total), exemplar=exemplar)
        metric.add_sample(f"{name}_count", labels, float(total))
        metric.add_sample(f"{name}_sum", labels, series.total)

    def _bound(self, index: int) -> str:
        return _bound(self._bounds[index] if index < len(self._bounds) else inf)


def _of_exemplar(exemplar: tuple[str, float, float] | None) -> str:
    if exemplar is None:
        return ""
    request_id, amount, wall = exemplar
    return f' # {{request_id="{escaped(request_id)}"}} {amount!r} {wall}'


@dataclass(frozen=True, slots=True)
class Rows:
    """A family whose values are read when it is scraped: label values and value of each sample."""

    family: Family
    rows: Iterable[tuple[tuple[str, ...], float]]

    def text(self, *, is_open: bool) -> Iterator[str]:
        yield self.family.head(is_open=is_open)
        name = self.family.name + ("_total" if self.family.kind == "counter" else "")
        for values, value in self.rows:
            yield f"{name}{_braced(self.family.named(values))} {float(value)!r}\n"


def exposition(families: Iterable[Numbers | Histograms | Rows], *, is_open: bool) -> bytes:
    """Return the text of a scrape, in OpenMetrics or in Prometheus' older format."""
    lines = [line for family in families for line in family.text(is_open=is_open)]
    return "".join([*lines, "# EOF\n" if is_open else ""]).encode()


def harmless(value: str) -> str:
    """Return a text with characters that UTF-8 cannot encode replaced."""
    return value.encode("utf-8", "replace").decode()


@lru_cache(maxsize=8192)
def escaped(value: str) -> str:
    """Return a label's value, escaped for use between quotes."""
    return harmless(value).translate(_ESCAPES)


@lru_cache(maxsize=64)
def _bound(value: float) -> str:
    return "+Inf" if value == inf else repr(value)


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""
