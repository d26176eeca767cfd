"""How many websockets are open, and how long they were."""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Scope

    from asgi_mlperf.telemetry.instruments import Instruments
    from asgi_mlperf.telemetry.routes import RouteTemplates
    from asgi_mlperf.telemetry.settings import MetricsSettings

_BOUNDS = (0.1, 1.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0)


class Websockets:
    """Counts each connection once, when it is over."""

    def __init__(
        self, settings: MetricsSettings, templates: RouteTemplates, instruments: Instruments
    ) -> None:
        """Create the series."""
        self._templates = templates
        self._excluded = frozenset(settings.exclude)
        self._open = 0
        self._active = instruments.gauge("asgi_mlperf_active_websockets", "Websockets that are open.")()
        self._seconds = instruments.histogram(
            "asgi_mlperf_websocket_seconds", "How long websockets were open.", ("http_route",), _BOUNDS
        )

    @contextmanager
    def open(self, scope: Scope) -> Iterator[None]:
        """Count a connection that lasts as long as this block."""
        outer, began = scope.get("root_path", ""), perf_counter()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)
            route = self._templates.route_in(scope, outer)
            if route not in self._excluded:
                self._seconds.labels(route).observe(perf_counter() - began)

    def _count(self, change: int) -> None:
        self._open += change
        self._active.set(self._open)
