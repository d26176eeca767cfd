"""Every series the package has, in one place, in a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from asgi_mlperf.hooks import PoolObservers
from asgi_mlperf.telemetry.garbage import GarbageSeries
from asgi_mlperf.telemetry.requests import RequestSeries

if TYPE_CHECKING:
    from asgi_mlperf.hooks import Traffic
    from asgi_mlperf.telemetry.settings import MetricsSettings

_FINE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The instruments of one running plugin."""

    def __init__(self, settings: MetricsSettings, *, traffic: Traffic, app: Any) -> None:
        """Create every series in a new registry; ``app`` is where route templates come from."""
        self.registry = registry = CollectorRegistry()
        self.requests = RequestSeries(settings, traffic=traffic, app=app, registry=registry)
        self.garbage = GarbageSeries(registry)
        self.loop_lag = Histogram(
            "asgi_mlperf_event_loop_lag_seconds",
            "How late the event loop came back, because of the garbage collector or of anything else.",
            ("cause",),
            buckets=_FINE,
            registry=registry,
        )
        self._queue = Histogram(
            "asgi_mlperf_inference_queue_seconds",
            "Time from a model call to its start.",
            ("pool",),
            buckets=_FINE,
            registry=registry,
        )
        self._run = Histogram(
            "asgi_mlperf_inference_run_seconds",
            "Run time of a model call or batch.",
            ("pool",),
            buckets=_FINE,
            registry=registry,
        )
        self._queue_length = Gauge(
            "asgi_mlperf_inference_queue_length",
            "Model calls and batches that wait for a slot.",
            ("pool",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._running = Gauge(
            "asgi_mlperf_inference_running",
            "Model calls and batches that run, their callers waiting or not.",
            ("pool",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._abandoned = Counter(
            "asgi_mlperf_inference_abandoned",
            "Model calls whose caller stopped waiting, by reason.",
            ("pool", "reason"),
            registry=registry,
        )
        self._refused = Counter(
            "asgi_mlperf_refused",
            "Model calls refused, by reason.",
            ("pool", "reason"),
            registry=registry,
        )
        self.batch_size = Histogram(
            "asgi_mlperf_batch_size",
            "Items per batch.",
            ("function",),
            buckets=_SIZES,
            registry=registry,
        )
        self.native_threads = Gauge(
            "asgi_mlperf_native_threads",
            "Native threads that an op of the library may use in an inference thread.",
            ("library",),
            registry=registry,
            multiprocess_mode="livemax",
        )

    def pool(self, name: str) -> PoolObservers:
        """Return where the measurements of the pool ``name`` go."""
        queue_length, running = self._queue_length.labels(name), self._running.labels(name)
        refused, abandoned = self._refused, self._abandoned
        return PoolObservers(
            wait=self._queue.labels(name),
            run=self._run.labels(name),
            queue_length=queue_length.set,
            running=running.set,
            abandoned=lambda reason: abandoned.labels(name, reason).inc(),
            refused=lambda reason: refused.labels(name, reason).inc(),
        )
