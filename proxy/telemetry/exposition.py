"""Series by their label values, and the text of a scrape.

The library makes several objects of each sample, hundreds of thousands in one scrape of a thousand
accounts, and requests that wait for the interpreter meanwhile leave late. Here a series keeps its
labels as text, and a scrape adds the numbers. The text is what the library would write; its private
values are read for it, in this file alone (a test compares the two).

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and OpenMetrics 1.0.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Final, Protocol, Self, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.samples import Exemplar

TEXT: Final = CONTENT_TYPE_PLAIN_0_0_4
OPEN_METRICS: Final = CONTENT_TYPE_LATEST

_EXEMPLAR_EVERY: Final = 32
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class _Instrument(Protocol):
    def labels(self, *labelvalues: object) -> Self: ...

    def remove(self, *labelvalues: object) -> None: ...


_T = TypeVar("_T", bound=_Instrument)


class QuickHistogram(Histogram):
    """A histogram without the library's checks of each observation, which cost more than it does.

    Of every so many observations of a bucket one leaves its exemplar, the first one to begin with.
    """

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count an amount in its bucket."""
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        if exemplar is not None and bucket.get() % _EXEMPLAR_EVERY == 0:
            super().observe(amount, exemplar)
            return
        self._sum.inc(amount)
        bucket.inc(1)


@dataclass(frozen=True, slots=True)
class Family:
    """The head of a group of samples; `name` is without the `_total` of a counter."""

    name: str
    kind: str
    text: str
    labels: Sequence[str]

    def head(self, *, is_open: bool) -> str:
        name = self.name if is_open or self.kind != "counter" else f"{self.name}_total"
        return f"# HELP {name} {self.text}\n# TYPE {name} {self.kind}\n"

    def named(self, values: Iterable[str]) -> str:
        """Return label values with their names, as they stand between the braces."""
        pairs = zip(self.labels, values, strict=True)
        return ",".join(f'{label}="{escaped(value)}"' for label, value in pairs)


class Series(dict[tuple[str, ...], _T]):
    """The series of one instrument, each looked up in the library once.

    The first label of those that have one is the account. Label values come from closed sets; one
    that is no text in UTF-8 would break every scrape from then on, so it is made harmless.
    """

    def __init__(self, instrument: _T, family: Family) -> None:
        super().__init__()
        self._instrument = instrument
        self._family = family
        self._names: dict[tuple[str, ...], str] = {}
        if not family.labels:
            self[()] = instrument

    def __missing__(self, values: tuple[str, ...]) -> _T:
        series = self[values] = self._instrument.labels(*map(harmless, values))
        return series

    def keep(self, accounts: frozenset[str]) -> None:
        """Forget the series of any other account."""
        for values in [values for values in self if values[0] not in accounts]:
            del self[values]
            self._names.pop(values, None)
            self._instrument.remove(*map(harmless, values))

    def text(self, *, is_open: bool) -> Iterator[str]:
        """Yield the lines; may be called in another thread than that which counts."""
        yield self._family.head(is_open=is_open)
        name = self._family.name
        for values, series in self.copy().items():
            labels = self._names.get(values)
            if labels is None:
                labels = self._names[values] = self._family.named(values)
            match series:
                case Counter():
                    value = series._value  # noqa: SLF001
                    yield f"{name}_total{_braced(labels)} {value.get()!r}\n"
                case Gauge():
                    yield f"{name}{_braced(labels)} {series._value.get()!r}\n"  # noqa: SLF001
                case Histogram():
                    yield from _of_histogram(name, labels, series, is_open=is_open)
                case _:
                    raise TypeError(type(series))


def _of_histogram(name: str, labels: str, series: Histogram, *, is_open: bool) -> Iterator[str]:
    total = 0.0
    before = f"{name}_bucket{{{labels},le="
    for bound, bucket in zip(series._upper_bounds, series._buckets, strict=True):  # noqa: SLF001
        total += bucket.get()
        exemplar = _of_exemplar(bucket.get_exemplar()) if is_open else ""
        yield f'{before}"{_bound(bound)}"}} {total!r}{exemplar}\n'
    yield f"{name}_count{{{labels}}} {total!r}\n"
    yield f"{name}_sum{{{labels}}} {series._sum.get()!r}\n"  # noqa: SLF001


def _of_exemplar(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    labels = ",".join(f'{key}="{escaped(value)}"' for key, value in exemplar.labels.items())
    return f" # {{{labels}}} {exemplar.value!r} {exemplar.timestamp}"


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


def exposition(
    families: Iterable[Series[Counter] | Series[Gauge] | Series[Histogram] | Rows], *, is_open: bool
) -> bytes:
    """Return the text of a scrape, in OpenMetrics or in Prometheus' older format."""
    lines = [line for family in families for line in family.text(is_open=is_open)]
    return "".join([*lines, "# EOF\n" if is_open else ""]).encode()


def harmless(value: str) -> str:
    """Return text that UTF-8 can hold."""
    return value.encode("utf-8", "replace").decode()


@lru_cache(maxsize=8192)
def escaped(value: str) -> str:
    """Return a label's value as it stands between quotes."""
    return harmless(value).translate(_ESCAPES)


@lru_cache(maxsize=64)
def _bound(value: float) -> str:
    return "+Inf" if value == inf else repr(value)


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""
