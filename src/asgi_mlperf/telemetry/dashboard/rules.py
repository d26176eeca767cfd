"""Recording rules for what dashboards and alerts ask often, and alerts on what needs a person."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from asgi_mlperf.telemetry.dashboard.queries import LAG, PAUSES, QUEUE, REFUSED, REQUESTS, RUN, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

_FROM = Source("", "5m")
_LEAST_TRAFFIC = 0.1


@dataclass(frozen=True, slots=True)
class Targets:
    """What the service promises: alerts fire when it is broken for minutes on end.

    ``latency_s`` bounds the p99 of all requests in seconds, ``error_ratio`` the share of 5xx.
    """

    latency_s: float = 1.0
    error_ratio: float = 0.01


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus computes ahead, named level:metric:operation."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that must hold for a time, what it means and what to do about it."""

    name: str
    expression: str
    minutes: int
    severity: Literal["warning", "critical"]
    summary: str
    description: str


def recordings() -> tuple[Recording, ...]:
    """Return the recording rules."""
    rate, quantile = _FROM.rate, _FROM.quantile
    job, route, pool = ("job",), ("job", "http_route"), ("job", "pool")
    return (
        Recording("job:http_server_requests:rate5m", rate(f"{REQUESTS}_count", by=job)),
        Recording("job_route:http_server_requests:rate5m", rate(f"{REQUESTS}_count", by=route)),
        Recording("job:http_server_request_errors:ratio5m", _FROM.error_ratio(by=job)),
        Recording(f"job:{REQUESTS}:p50_5m", quantile(0.5, REQUESTS, by=job)),
        Recording(f"job:{REQUESTS}:p99_5m", quantile(0.99, REQUESTS, by=job)),
        Recording(f"job_route:{REQUESTS}:p99_5m", quantile(0.99, REQUESTS, by=route)),
        Recording(f"job_pool:{QUEUE}:p99_5m", quantile(0.99, QUEUE, by=pool)),
        Recording(f"job_pool:{QUEUE}:mean5m", _FROM.mean(QUEUE, by=pool)),
        Recording(f"job_pool:{RUN}:mean5m", _FROM.mean(RUN, by=pool)),
        Recording("job_pool:asgi_mlperf_refused:ratio5m", _refused_ratio()),
        Recording(f"job:{PAUSES}:request_p99_5m", quantile(0.99, PAUSES, 'where="request"', by=job)),
        Recording(f"job:{LAG}:other_p99_5m", quantile(0.99, LAG, 'cause="other"', by=job)),
    )


def _refused_ratio() -> str:
    pool = ("job", "pool")
    refused = _FROM.rate(REFUSED, 'reason!="shutting_down"', by=pool)
    return f"{refused} / ({refused} + {_FROM.rate(f'{QUEUE}_count', by=pool)})"


def alerts(targets: Targets) -> tuple[Alert, ...]:
    """Return the alerts."""
    return (*_of_the_four_signals(targets), *_of_the_machinery(), *_of_the_host())


def _of_the_four_signals(targets: Targets) -> tuple[Alert, ...]:
    busy = f"job:http_server_requests:rate5m > {_LEAST_TRAFFIC:g}"
    return (
        Alert(
            "ASGIMLPerfLatency",
            f"job:{REQUESTS}:p99_5m > {targets.latency_s:g} and on (job) {busy}",
            10,
            "warning",
            "{{ $labels.job }}: p99 is {{ $value | humanizeDuration }}",
            f"More than 1 % of requests took longer than {targets.latency_s:g} s for 10 minutes. The section "
            "'Where the time goes' of the dashboard tells waiting from running, lag and collections.",
        ),
        Alert(
            "ASGIMLPerfTraffic",
            f"job:http_server_requests:rate5m == 0 and on (job) {busy.replace(' >', ' offset 1h >')}",
            10,
            "warning",
            "{{ $labels.job }}: no requests any more",
            "There were requests an hour ago and there are none now: look at what stands before the workers.",
        ),
        Alert(
            "ASGIMLPerfErrors",
            f"job:http_server_request_errors:ratio5m > {targets.error_ratio:g} and on (job) {busy}",
            5,
            "critical",
            "{{ $labels.job }}: {{ $value | humanizePercentage }} of requests fail",
            f"More than {targets.error_ratio:.2%} of requests were answered with 5xx for 5 minutes.",
        ),
        Alert(
            "ASGIMLPerfSaturation",
            f"job_pool:{QUEUE}:mean5m > 2 * job_pool:{RUN}:mean5m and job_pool:{QUEUE}:mean5m > 0.05",
            10,
            "warning",
            "{{ $labels.job }}: calls to {{ $labels.pool }} wait {{ $value | humanizeDuration }}",
            "Model calls wait for a thread more than twice as long as they run. More workers, a faster model "
            "or batches are needed; more threads help only while CPUs are idle.",
        ),
    )


def _of_the_machinery() -> tuple[Alert, ...]:
    worst_share = _FROM.most("asgi_mlperf_gc_share_ratio", by=("job", "instance"))
    openings = _FROM.of("asgi_mlperf_gc_valve_openings_total", 'reason="memory"')
    return (
        Alert(
            "ASGIMLPerfOverload",
            "job_pool:asgi_mlperf_refused:ratio5m > 0.01",
            5,
            "critical",
            "{{ $labels.job }}: {{ $value | humanizePercentage }} of calls to {{ $labels.pool }} are refused",
            "The queue is full or deadlines are out of reach: clients get 503 with Retry-After. Add workers, "
            "or raise ASGI_MLPERF_POOL__MAX_QUEUE if callers have the time to wait.",
        ),
        Alert(
            "ASGIMLPerfGarbagePauses",
            f"job:{PAUSES}:request_p99_5m > 0.05",
            10,
            "warning",
            "{{ $labels.job }}: collections stop requests for {{ $value | humanizeDuration }}",
            "Full collections fall into requests: the worker is never idle, or another package collects. See "
            "asgi_mlperf_gc_deferred_seconds and the log.",
        ),
        Alert(
            "ASGIMLPerfGarbageShare",
            f"{worst_share} > 0.05",
            10,
            "warning",
            "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the time goes to the collector",
            "The code makes many objects that live on. ASGI_MLPERF_GC__FULL_SHARE bounds full collections.",
        ),
        Alert(
            "ASGIMLPerfMemoryValve",
            f"sum by (job, instance) (increase({openings}[15m])) > 3",
            1,
            "warning",
            "{{ $labels.instance }}: memory outgrows the garbage schedule",
            "The valve opened {{ $value | humanize }} times in 15 minutes. Either memory leaks, or "
            "ASGI_MLPERF_GC__VALVE_GROWTH_MB is less than what requests need for a moment.",
        ),
        Alert(
            "ASGIMLPerfEventLoop",
            f"job:{LAG}:other_p99_5m > 0.1",
            10,
            "warning",
            "{{ $labels.job }}: the event loop is {{ $value | humanizeDuration }} late",
            "Something blocks the event loop: move it into plugin.run, plugin.batched or a def endpoint.",
        ),
    )


def _of_the_host() -> tuple[Alert, ...]:
    instance = ("job", "instance")
    return (
        Alert(
            "ASGIMLPerfOversubscribed",
            f"{_FROM.threads_per_cpu(by=instance)} > 1.5",
            10,
            "warning",
            "{{ $labels.instance }}: {{ $value | humanize }} threads at work for each CPU",
            "Calls that run, times the native threads of an op, outnumber the CPUs: see asgi-mlperf doctor. "
            "Lower ASGI_MLPERF_POOL__THREADS or ASGI_MLPERF_THREADS__NATIVE.",
        ),
        Alert(
            "ASGIMLPerfMemory",
            f"{_FROM.memory_ratio(by=instance)} > 0.9",
            5,
            "critical",
            "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the memory limit is in use",
            "The kernel ends a worker that goes beyond. Fewer workers, a higher limit, or find what grows.",
        ),
        Alert(
            "ASGIMLPerfNotReady",
            f"{_FROM.total('asgi_mlperf_ready', by=('job',))} == 0",
            5,
            "critical",
            "{{ $labels.job }}: no worker is ready",
            "GET /readyz gives the reasons.",
        ),
    )


def text(targets: Targets | None = None) -> str:
    """Return the rules as a file for Prometheus."""
    return "\n".join(_lines(targets or Targets())) + "\n"


def _lines(targets: Targets) -> Iterator[str]:
    yield "groups:"
    yield "  - name: asgi-mlperf-recordings"
    yield "    rules:"
    for recording in recordings():
        yield f"      - record: {recording.name}"
        yield f"        expr: '{recording.expression}'"
    yield "  - name: asgi-mlperf-alerts"
    yield "    rules:"
    for alert in alerts(targets):
        yield f"      - alert: {alert.name}"
        yield f"        expr: '{alert.expression}'"
        yield f"        for: {alert.minutes}m"
        yield "        labels:"
        yield f"          severity: {alert.severity}"
        yield "        annotations:"
        yield f"          summary: {_quoted(alert.summary)}"
        yield f"          description: {_quoted(alert.description)}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # every JSON string is a YAML one
