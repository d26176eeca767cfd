"""Every series the package has, in one place, in a registry of its own."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

from asgi_mlperf.hooks import PoolObservers
from asgi_mlperf.telemetry.garbage import GarbageSeries
from asgi_mlperf.telemetry.routes import RouteTemplates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.hooks import Clock, Closer, Exchange, Traffic

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_FINE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 < low < high < math.inf for low, high in pairwise((*bounds, bounds[-1] + 1))):
        raise ValueError("bucket bounds are positive, finite seconds in rising order")
    return bounds


class MetricsSettings(BaseModel):
    """What is measured and where it is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="measure requests and inference, and serve the metrics")
    path: str = Field(default="/metrics", pattern="^/", description="path of the metrics endpoint")
    buckets: Annotated[tuple[float, ...], NoDecode, BeforeValidator(_split), AfterValidator(_rising)] = Field(
        default=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
        min_length=1,
        description="upper bounds of the request duration histogram, in seconds, comma-separated",
    )
    exclude: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(), description="route templates that are not measured, comma-separated"
    )
    default_registry: bool = Field(
        default=True, description="also serve prometheus-client's default registry (process and own metrics)"
    )


def several_processes() -> bool:
    """Say whether prometheus-client adds up the metrics of several processes, as its variable asks."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


@contextmanager
def workers_end() -> Iterator[None]:
    """Take this worker's gauges out of prometheus-client's multi-process files after this block."""
    try:
        yield
    finally:
        if several_processes():
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call] # prometheus-client's is untyped


class Metrics:
    """The instruments of one running plugin."""

    def __init__(self, settings: MetricsSettings, *, clock: Clock, traffic: Traffic, app: Any) -> None:
        """Create every series in a new registry; ``app`` is where route templates come from."""
        self._traffic = traffic
        # With what they stand for, so that no id is used again.
        self._taken: dict[tuple[int, int, int, str, int], tuple[Histogram | None, Any, Any, Any]] = {}
        self.registry = registry = CollectorRegistry()
        self._clock = clock
        self._templates = RouteTemplates(app)
        self._excluded = frozenset(settings.exclude)
        self._requests: dict[tuple[str, str, int], Histogram] = {}
        self._duration = Histogram(
            "http_server_request_duration_seconds",
            "Time from the first look at a request to the last byte of its response.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=settings.buckets,
            registry=registry,
        )
        self._active = Gauge(
            "http_server_active_requests",
            "Requests in flight.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        if not several_processes():
            self._active.set_function(lambda: traffic.in_flight)
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

    def hook(self, _: Exchange) -> Closer:
        """Measure a request when it ends."""
        return self._ended

    def count_active(self) -> None:
        """Note how many requests are in flight, where the metrics of several processes are added up."""
        if several_processes():
            self._active.set(self._traffic.in_flight)

    def _ended(self, exchange: Exchange) -> None:
        scope = exchange.scope
        route, endpoint = scope.get("route"), scope.get("endpoint")
        included = scope.get("fastapi")
        context = None if included is None else included.get("effective_route_context")
        if scope.get("root_path", "") != exchange.root_path:
            child = self._child(exchange)  # a mount took part, of which the leaf knows nothing
        else:
            key = (id(route), id(endpoint), id(context), scope["method"], exchange.status)
            taken = self._taken.get(key)
            child = self._child(exchange) if taken is None else taken[0]
            if taken is None and route is not None and scope["method"] in _METHODS:
                self._taken[key] = (child, route, endpoint, context)
        if child is not None:
            child.observe(self._clock() - exchange.started_at)

    def _child(self, exchange: Exchange) -> Histogram | None:
        method = exchange.scope["method"]
        route = self._templates.route_of(exchange)
        if route in self._excluded:
            return None
        key = (method if method in _METHODS else "_OTHER", route, exchange.status)
        child = self._requests.get(key)
        if child is None:
            child = self._requests[key] = self._duration.labels(*key)
        return child
