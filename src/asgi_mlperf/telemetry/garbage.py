"""What the garbage collector did, and where its schedule stands, as metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asgi_mlperf.telemetry.instruments import Instruments

_PAUSES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_SHARE_OVER_S = 60.0


class GarbageSeries:
    """The series of the garbage collector; everything is told to them from the event loop."""

    def __init__(self, instruments: Instruments) -> None:
        """Create the series."""
        self._pause = instruments.histogram(
            "asgi_mlperf_gc_pause_seconds",
            "Pauses of the garbage collector, and whether they fell into a request.",
            ("generation", "where"),
            _PAUSES,
        )
        self._freed = instruments.counter(
            "asgi_mlperf_gc_freed_objects", "Objects that the garbage collector freed.", ("generation",)
        )
        self._openings = instruments.counter(
            "asgi_mlperf_gc_valve_openings",
            "Times that CPython's own automatic collection was re-armed, by reason.",
            ("reason",),
        )
        self._share = instruments.gauge(
            "asgi_mlperf_gc_share_ratio",
            "Share of wall time in collections, over about a minute.",
            mode="livemax",
        )()
        self._deferred = instruments.gauge(
            "asgi_mlperf_gc_deferred_seconds", "How long a full collection has been due.", mode="livemax"
        )()
        self._frozen = instruments.gauge(
            "asgi_mlperf_gc_frozen_objects", "Objects kept out of collections, at the last freeze."
        )()
        self._valve = instruments.gauge(
            "asgi_mlperf_gc_valve_open", "Whether CPython's own automatic collection is re-armed now."
        )()
        self._told: dict[str, int] = {}
        self._seen_at: float | None = None
        self._seen_seconds = self._smoothed = 0.0

    def paused(self, generation: int, where: str, seconds: float, freed: int) -> None:
        """Take one collection."""
        self._pause.labels(str(generation), where).observe(seconds)
        self._freed.labels(str(generation)).inc(freed)

    def stands(
        self,
        *,
        frozen_objects: int,
        deferred_s: float,
        valve_open_for: str | None,
        valve_openings: dict[str, int],
    ) -> None:
        """Take where the schedule stands; the openings are all so far, by reason."""
        self._frozen.set(frozen_objects)
        self._deferred.set(deferred_s)
        self._valve.set(valve_open_for is not None)
        for reason, count in valve_openings.items():
            self._openings.labels(reason).inc(count - self._told.get(reason, 0))
            self._told[reason] = count

    def spent(self, seconds: float, *, now: float) -> None:
        """Take the seconds in collections so far; called again and again, at any intervals."""
        if self._seen_at is not None and now > self._seen_at:
            interval = now - self._seen_at
            weight = 1 - math.exp(-interval / _SHARE_OVER_S)
            self._smoothed += weight * ((seconds - self._seen_seconds) / interval - self._smoothed)
        self._seen_at, self._seen_seconds = now, seconds
        self._share.set(self._smoothed)
