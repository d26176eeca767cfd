"""Every series the package has, in one place, in a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgi_mlperf.hooks import PoolObservers
from asgi_mlperf.telemetry.batches import BatchSeries
from asgi_mlperf.telemetry.garbage import GarbageSeries
from asgi_mlperf.telemetry.instruments import Instruments, by_reason
from asgi_mlperf.telemetry.requests import RequestSeries
from asgi_mlperf.telemetry.tallies import each_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from asgi_mlperf.hooks import ModelCall, Traffic
    from asgi_mlperf.telemetry.opentelemetry import Mirror
    from asgi_mlperf.telemetry.settings import MetricsSettings

_FINE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The instruments of one running plugin."""

    def __init__(
        self, settings: MetricsSettings, *, traffic: Traffic, app: Any, mirror: Mirror | None = None
    ) -> None:
        """Create every series in a new registry; ``app`` is where route templates come from.

        ``mirror`` tells OpenTelemetry the same.
        """
        self.instruments = made = Instruments(mirror)
        self.registry = made.registry
        self.called: Callable[[ModelCall], None] | None = None
        """Whom pools tell of each call."""
        self._writers: list[Callable[[], None]] = []
        self.requests = RequestSeries(settings, traffic=traffic, app=app, instruments=made)
        self.garbage = GarbageSeries(made)
        self.loop_lag = made.histogram(
            "asgi_mlperf_event_loop_lag_seconds",
            "How late the event loop came back, because of the garbage collector or of anything else.",
            ("cause",),
            _FINE,
        )
        self._queue = made.histogram(
            "asgi_mlperf_inference_queue_seconds", "Time from a model call to its start.", ("pool",), _FINE
        )
        self._run = made.histogram(
            "asgi_mlperf_inference_run_seconds", "Run time of a model call or batch.", ("pool",), _FINE
        )
        self._queue_length = made.gauge(
            "asgi_mlperf_inference_queue_length", "Model calls and batches that wait for a slot.", ("pool",)
        )
        self._running = made.gauge(
            "asgi_mlperf_inference_running",
            "Model calls and batches that run, their callers waiting or not.",
            ("pool",),
        )
        self._abandoned = made.counter(
            "asgi_mlperf_inference_abandoned",
            "Model calls whose caller stopped waiting, by reason.",
            ("pool", "reason"),
        )
        self._refused = made.counter(
            "asgi_mlperf_refused", "Model calls refused, by reason.", ("pool", "reason")
        )
        self.batches = BatchSeries(made)
        self.native_threads = made.gauge(
            "asgi_mlperf_native_threads",
            "Native threads that an op of the library may use in an inference thread.",
            ("library",),
            mode="livemax",
        )

    def host(self, *, cores: float, memory_limit: int | None, rss: Callable[[], int]) -> None:
        """Show what this worker may use, and what it does use."""
        made = self.instruments
        made.gauge("asgi_mlperf_cpu_budget_cores", "CPUs that this worker may use.")().set(cores)
        if memory_limit is not None:
            limit = made.gauge(
                "asgi_mlperf_memory_limit_bytes", "Memory that the container may use.", mode="livemax"
            )
            limit().set(memory_limit)
        self._function("asgi_mlperf_memory_rss_bytes", "Resident memory of this worker.", rss)

    def ready(self, read: Callable[[], bool]) -> None:
        """Show whether this worker is ready for traffic."""
        self._function("asgi_mlperf_ready", "Workers that are ready for traffic.", read)

    def write_down(self) -> None:
        """Note the gauges that are read at a scrape, where other workers may be the ones scraped."""
        for write in self._writers:
            write()

    def _function(self, name: str, text: str, read: Callable[[], float]) -> None:
        write = self.instruments.function(name, text, read)
        if write is not None:
            write()
            self._writers.append(write)

    def pool(self, name: str) -> PoolObservers:
        """Return where the measurements of the pool ``name`` go."""
        queue_length, running = self._queue_length(name), self._running(name)
        return PoolObservers(
            waited=each_of(self._queue.labels(name)),
            run=self._run.labels(name),
            queue_length=queue_length.set,
            running=running.set,
            abandoned=by_reason(self._abandoned, name),
            called=self.called,
            refused=by_reason(self._refused, name),
        )
