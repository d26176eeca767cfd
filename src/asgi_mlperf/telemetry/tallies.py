"""Histograms that one thread fills without locks, and that any thread may read at a scrape."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Exemplar

    from asgi_mlperf.hooks import Observer


class Tally:
    """The counts for one set of label values; observed by one thread at a time.

    A lock, as prometheus-client has one around each number, would cost more than the counting.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin with nothing counted; the last of ``counts`` is what lies above all ``bounds``."""
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, amount: float) -> None:
        """Count one measurement."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Count several, by one search for each bucket that they are in."""
        if len(amounts) == 1:
            self.observe(amounts[0])
            return
        bounds, ordered, counted = self._bounds, sorted(amounts), 0
        while counted < len(ordered):
            bucket = bisect_left(bounds, ordered[counted])
            end = bisect_right(ordered, bounds[bucket]) if bucket < len(bounds) else len(ordered)
            self.counts[bucket] += end - counted
            counted = end
        self.total += sum(ordered)


def each_of(observer: Observer) -> Callable[[Sequence[float]], None]:
    """Return what lets ``observer`` take several measurements, in one call if it is a tally."""
    if isinstance(observer, Tally):
        return observer.observe_all
    observe = observer.observe

    def observe_all(amounts: Sequence[float]) -> None:
        for amount in amounts:
            observe(amount)

    return observe_all


class Tallies(Collector):
    """The tallies of one histogram, by label values."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """Offer the histogram in ``registry``."""
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._tallies: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """Return the tally of these label values."""
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = Tally(self._bounds)
        return tally

    def describe(self) -> Iterator[Metric]:
        """Yield the histogram without its counts."""
        yield family_of(self._name, self._text, self._labels, (), ())

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram with the counts so far."""
        tallies = list(self._tallies.items())
        counted = ((values, tally.counts, tally.total) for values, tally in tallies)
        yield family_of(self._name, self._text, self._labels, text_of_bounds(self._bounds), counted)


def text_of_bounds(bounds: Sequence[float]) -> list[str]:
    """Write upper bounds as the labels of their buckets, the last for all more."""
    return [*map(floatToGoString, bounds), "+Inf"]


def family_of(
    name: str,
    text: str,
    labels: Sequence[str],
    bounds: Sequence[str],
    counted: Iterable[tuple[tuple[str, ...], list[int], float]],
    exemplars: Mapping[tuple[str, ...], Mapping[int, Exemplar]] = MappingProxyType({}),
) -> Metric:
    """Make a histogram of label values, the counts of each bucket alone, and the sum.

    ``exemplars`` are by label values and the number of their bucket.
    """
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, counts, total in counted:
        # A copy first: the event loop goes on counting.
        buckets: list[Any] = list(zip(bounds, accumulate(list(counts)), strict=True))
        for number, exemplar in exemplars.get(values, {}).items():
            buckets[number] = (*buckets[number], exemplar)
        family.add_metric(values, buckets, total)
    return family
