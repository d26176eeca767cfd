"""What the page shows of the series, small enough to be asked for every second."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Sample

_REQUESTS = "http_server_request_duration_seconds"
_QUEUE = "asgi_mlperf_inference_queue_seconds"
_ROUTES = 12
_STAGES: dict[str, tuple[str, dict[str, str]]] = {
    "waiting": (_QUEUE, {}),
    "running": ("asgi_mlperf_inference_run_seconds", {}),
    "lingering": ("asgi_mlperf_batch_linger_seconds", {}),
    "batch": ("asgi_mlperf_batch_run_seconds", {}),
    "batch_size": ("asgi_mlperf_batch_size", {}),
    "encoding": ("asgi_mlperf_encode_seconds", {}),
    "collecting": ("asgi_mlperf_gc_pause_seconds", {"where": "request"}),
    "lag_collecting": ("asgi_mlperf_event_loop_lag_seconds", {"cause": "gc"}),
    "lag_other": ("asgi_mlperf_event_loop_lag_seconds", {"cause": "other"}),
}
_BY_POOL = {
    "waiting": "asgi_mlperf_inference_queue_length",
    "running": "asgi_mlperf_inference_running",
    "refused": "asgi_mlperf_refused",
}
_GAUGES = {
    "active": "http_server_active_requests",
    "rss": "asgi_mlperf_memory_rss_bytes",
    "memory_limit": "asgi_mlperf_memory_limit_bytes",
}


def snapshot(families: Iterable[Metric]) -> dict[str, Any]:
    """Add up what was counted since the start; who wants rates asks twice.

    A histogram is ``le``, the upper bounds of its buckets in seconds, ``counts``, how many stayed below
    each, ``count``, how many there were, and ``sum``, the seconds that they took together. Series that this
    worker does not have are left out.
    """
    by_name = {family.name: family.samples for family in families}
    requests = by_name.get(_REQUESTS, [])
    found: dict[str, Any] = {
        "requests": {**_histogram(requests, {}), "failed": _failed(requests)},
        "stages": {
            stage: _histogram(by_name[name], labels)
            for stage, (name, labels) in _STAGES.items()
            if name in by_name
        },
        "pools": _pools(by_name),
        "routes": _routes(requests),
    }
    for key, name in _GAUGES.items():
        if name in by_name:
            found[key] = sum(sample.value for sample in by_name[name])
    return found


def _histogram(samples: Iterable[Sample], labels: dict[str, str]) -> dict[str, Any]:
    counts: dict[float, float] = defaultdict(float)
    total = 0.0
    for sample in samples:
        if labels.items() <= sample.labels.items():
            if sample.name.endswith("_bucket"):
                counts[float(sample.labels["le"])] += sample.value
            elif sample.name.endswith("_sum"):
                total += sample.value
    bounds = sorted(counts)
    in_order = [counts[bound] for bound in bounds]
    return {
        "le": bounds[:-1],
        "counts": in_order[:-1],
        "count": in_order[-1] if in_order else 0.0,
        "sum": total,
    }


def _failed(samples: Iterable[Sample]) -> float:
    return sum(
        sample.value
        for sample in samples
        if sample.name.endswith("_count") and sample.labels["http_response_status_code"].startswith("5")
    )


def _routes(samples: Iterable[Sample]) -> dict[str, Any]:
    """Give the histograms of the routes with the most requests, the busiest first."""
    by_route: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_route[sample.labels["http_route"]].append(sample)
    found = {route: _histogram(its_own, {}) for route, its_own in by_route.items()}
    busiest = sorted(found, key=lambda route: -found[route]["count"])[:_ROUTES]
    return {route: found[route] for route in busiest}


def _pools(by_name: dict[str, list[Sample]]) -> dict[str, Any]:
    pools: dict[str, dict[str, float]] = {}
    for key, name in _BY_POOL.items():
        for sample in by_name.get(name, ()):
            if not sample.name.endswith("_created"):
                pool = pools.setdefault(sample.labels["pool"], dict.fromkeys(_BY_POOL, 0.0))
                pool[key] += sample.value
    return pools
