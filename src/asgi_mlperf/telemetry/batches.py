"""The series of batched functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgi_mlperf.hooks import BatchObservers
from asgi_mlperf.telemetry.instruments import by_reason
from asgi_mlperf.telemetry.tallies import each_of

if TYPE_CHECKING:
    from asgi_mlperf.telemetry.instruments import Instruments

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FINE = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_EXECUTORS = ("inline", "thread", "task")


class BatchSeries:
    """What is known of each batched function."""

    def __init__(self, instruments: Instruments) -> None:
        """Create every series."""
        made, label = instruments, ("function",)
        self._size = made.histogram("asgi_mlperf_batch_size", "Items per batch.", label, _SIZES)
        self._linger = made.histogram(
            "asgi_mlperf_batch_linger_seconds",
            "Time from an item's arrival to its batch's start.",
            label,
            _FINE,
        )
        self._run = made.histogram("asgi_mlperf_batch_run_seconds", "Run time of a batch.", label, _FINE)
        self._closed = made.counter(
            "asgi_mlperf_batch_closed",
            "Batches by what closed them: full, idle_slot (nothing else waited), deadline, cost, budget.",
            (*label, "reason"),
        )
        self._padding = made.histogram(
            "asgi_mlperf_batch_padding_ratio",
            "Share of a padded batch that is padding, where items have a cost.",
            label,
            _SHARES,
        )
        self._executor = made.gauge(
            "asgi_mlperf_batch_executor",
            "1 for where the function's batches run at present.",
            (*label, "executor"),
        )
        self._restarts = made.counter(
            "asgi_mlperf_batch_restarts", "New starts of a function's dispatcher after it failed.", label
        )

    def function(self, name: str) -> BatchObservers:
        """Return where the measurements of the function ``name`` go."""
        padding, restarts = self._padding, self._restarts

        def run_in(chosen: str) -> None:
            for executor in _EXECUTORS:
                self._executor(name, executor).set(executor == chosen)

        return BatchObservers(
            size=self._size.labels(name),
            lingered=each_of(self._linger.labels(name)),
            run=self._run.labels(name),
            closed=by_reason(self._closed, name),
            padding=lambda ratio: padding.labels(name).observe(ratio),
            executor=run_in,
            restarted=lambda: restarts.labels(name).inc(),
        )
