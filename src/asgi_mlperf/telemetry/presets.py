"""The request series in the names that other packages gave them, so that dashboards outlive a swap."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.samples import Sample

INSTRUMENTATOR_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5),
    *(4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)
_COARSE = frozenset(map(floatToGoString, (0.1, 0.5, 1.0, float("inf"))))
_DURATION = "http_server_request_duration_seconds"
_RECEIVED = "http_server_request_body_size_bytes"
_SENT = "http_server_response_body_size_bytes"
_UNMATCHED = "none"


class Instrumentator(Collector):
    """Shows what ``source`` collects as prometheus-fastapi-instrumentator would.

    Its five series are made of our three histograms, which are left out; everything else passes through.
    Unlike there, background tasks are not in the durations, and sizes are those of the bodies that were
    really sent and read.
    """

    def __init__(self, source: Callable[[], Iterable[Metric]]) -> None:
        """Collect from ``source`` when asked to."""
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield the families, renamed."""
        taken: dict[str, Metric] = {}
        for family in self._source():
            if family.name in (_DURATION, _RECEIVED, _SENT):
                taken[family.name] = family
            else:
                yield family
        if _DURATION in taken:
            yield _requests(taken[_DURATION])
            yield from _durations(taken[_DURATION])
        for name, shown, text in (
            (_RECEIVED, "http_request_size_bytes", "Bytes of request bodies, by handler."),
            (_SENT, "http_response_size_bytes", "Bytes of response bodies, by handler."),
        ):
            if name in taken:
                yield _sizes(taken[name], shown, text)


def _handler(sample: Sample) -> str:
    return sample.labels["http_route"] or _UNMATCHED


def _sums(samples: Iterable[tuple[tuple[str, ...], float]]) -> dict[tuple[str, ...], float]:
    sums: dict[tuple[str, ...], float] = defaultdict(float)
    for key, value in samples:
        sums[key] += value
    return sums


def _requests(durations: Metric) -> Metric:
    family = CounterMetricFamily(
        "http_requests",
        "Total number of requests by method, status and handler.",
        labels=("method", "status", "handler"),
    )
    counts = _sums(
        (
            (
                sample.labels["http_request_method"],
                f"{sample.labels['http_response_status_code'][0]}xx",
                _handler(sample),
            ),
            sample.value,
        )
        for sample in durations.samples
        if sample.name.endswith("_count")
    )
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _durations(durations: Metric) -> Iterator[Metric]:
    fine = HistogramMetricFamily(
        "http_request_duration_highr_seconds", "Latency with many buckets but no API specific labels."
    )
    coarse = HistogramMetricFamily(
        "http_request_duration_seconds",
        "Latency with only few buckets by handler.",
        labels=("method", "handler"),
    )
    _fill(fine, durations, lambda _: (), None)
    _fill(coarse, durations, lambda sample: (sample.labels["http_request_method"], _handler(sample)), _COARSE)
    yield fine
    yield coarse


def _fill(
    family: HistogramMetricFamily,
    durations: Metric,
    labels_of: Callable[[Sample], tuple[str, ...]],
    bounds: frozenset[str] | None,
) -> None:
    buckets = _sums(
        ((*labels_of(sample), sample.labels["le"]), sample.value)
        for sample in durations.samples
        if sample.name.endswith("_bucket") and (bounds is None or sample.labels["le"] in bounds)
    )
    totals = _sums(
        (labels_of(sample), sample.value) for sample in durations.samples if sample.name.endswith("_sum")
    )
    by_labels: dict[tuple[str, ...], list[tuple[str, float]]] = {labels: [] for labels in totals}
    for key, count in buckets.items():
        by_labels[key[:-1]].append((key[-1], count))
    for labels, counts in by_labels.items():
        family.add_metric(labels, sorted(counts, key=lambda pair: float(pair[0])), totals[labels])


def _sizes(family: Metric, name: str, text: str) -> Metric:
    shown = SummaryMetricFamily(name, text, labels=("handler",))
    by_kind = {
        kind: _sums(
            ((_handler(sample),), sample.value) for sample in family.samples if sample.name.endswith(kind)
        )
        for kind in ("_count", "_sum")
    }
    for labels, count in by_kind["_count"].items():
        shown.add_metric(labels, int(count), by_kind["_sum"][labels])
    return shown
