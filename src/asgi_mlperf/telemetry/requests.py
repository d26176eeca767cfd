"""What requests took, by method, route template and status: the only series that every request writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client import Gauge
from prometheus_client.metrics_core import GaugeMetricFamily

from asgi_mlperf.exchange import CLIENT_LEFT, METHODS
from asgi_mlperf.route_cache import context_of, key_of
from asgi_mlperf.telemetry.cells import cells
from asgi_mlperf.telemetry.files import Named
from asgi_mlperf.telemetry.routes import RouteTemplates
from asgi_mlperf.telemetry.websockets import Websockets
from asgi_mlperf.telemetry.workers import several_processes

if TYPE_CHECKING:
    from asgi_mlperf.exchange import Key
    from asgi_mlperf.hooks import Closer, Exchange, Observer, Opener, Traffic
    from asgi_mlperf.telemetry.cells import Cell
    from asgi_mlperf.telemetry.instruments import Instruments
    from asgi_mlperf.telemetry.settings import MetricsSettings

ENCODE_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
Observe = Callable[[float, int, int], None]
OTHER = "_OTHER"
"""The label of methods outside the known set, as in OpenTelemetry."""


class _Excluded:
    """The cell of routes that are not measured."""

    @staticmethod
    def observe(_seconds: float, _received: int, _sent: int) -> None:
        """Count nothing."""


_EXCLUDED = _Excluded()


class _ByFormat(dict[str, "Callable[[float], None]"]):
    """Takes the seconds that a format took."""

    def __init__(self, labels: Callable[[str], Observer]) -> None:
        super().__init__()
        self._labels = labels

    def __missing__(self, format_: str) -> Callable[[float], None]:
        observe = self[format_] = self._labels(format_).observe
        return observe


class RequestSeries:
    """Counts each request once, when it ends.

    ``openers``, ``closers`` and ``afterwards`` are what the middleware calls; ``route_of`` gives the
    template of the route that a request took.
    """

    def __init__(
        self, settings: MetricsSettings, *, traffic: Traffic, app: Any, instruments: Instruments
    ) -> None:
        """Create the series; ``app`` is where route templates come from."""
        # With what they stand for, so that no id is used again.
        self._taken: dict[tuple[Key, int], tuple[Observe, Any]] = {}
        self._cells: dict[tuple[str, str, int], Cell] = {}
        self._templates = RouteTemplates(app)
        self.route_of = self._templates.route_of
        self._excluded = frozenset(settings.exclude)
        self._made = cells(settings.request_buckets, instruments)
        self._first_byte = instruments.histogram(
            "asgi_mlperf_first_byte_seconds",
            "Time from the first look at a request to the first byte of its streamed response.",
            ("http_route",),
            settings.request_buckets,
        )
        self._background = instruments.histogram(
            "asgi_mlperf_background_seconds",
            "Time that the app went on after the response, in background tasks above all.",
            ("http_route",),
            settings.request_buckets,
        )
        encode = instruments.histogram(
            "asgi_mlperf_encode_seconds",
            "Time to encode a response of the package's own response classes.",
            ("format",),
            ENCODE_BOUNDS,
        )
        self._encode = _ByFormat(encode.labels)
        self._websockets = Websockets(settings, self._templates, instruments)
        self.websocket = self._websockets.open if settings.enabled else None
        self.openers: tuple[Opener, ...] = ()
        self.closers: tuple[Closer, ...] = ()
        self.afterwards: tuple[Callable[[Exchange, float], None], ...] = ()
        if settings.enabled:
            self._count_active(traffic, instruments)
            self.closers += (self._ended,)
            self.afterwards = (self._went_on,)

    def _count_active(self, traffic: Traffic, instruments: Instruments) -> None:
        name, text = "http_server_active_requests", "Requests in flight."
        if instruments.mirror is not None:
            instruments.mirror.function(name, text, lambda: traffic.in_flight)
        if not several_processes():
            Gauge(name, text, registry=instruments.registry).set_function(lambda: traffic.in_flight)
            return
        file = instruments.file("gauge_livesum", keep=False)
        instruments.registry.register(Named(GaugeMetricFamily(name, text)))
        key, write = file.key(name, "", (), (), text), file.write

        def note(_: Exchange | None = None) -> None:
            write(key, traffic.in_flight, 0.0)

        self.openers = (note,)
        self.closers = (note,)

    def _ended(self, exchange: Exchange) -> None:
        scope, way = exchange.scope, exchange.way
        is_as_ever = (  # and no endpoint passed it on
            way is not None and scope.get("route") is way.taken and scope.get("endpoint") is way.endpoint
        )
        if not is_as_ever and scope.get("root_path", "") != exchange.root_path:
            observe = self._cell(exchange).observe  # a mount took part, of which the leaf knows nothing
        else:
            key = way.key if is_as_ever else key_of(scope)  # type: ignore[union-attr] # as was asked
            taken = self._taken.get((key, exchange.status))
            observe = self._take(key, exchange) if taken is None else taken[0]
        observe(exchange.ended_at - exchange.started_at, exchange.received_bytes, exchange.sent_bytes)
        for format_, seconds in exchange.encodings:
            self._encode[format_](seconds)
        if exchange.streamed_at and observe is not _EXCLUDED.observe:
            seconds = exchange.streamed_at - exchange.started_at
            self._first_byte.labels(self._templates.route_of(exchange)).observe(seconds)

    def _take(self, key: Key, exchange: Exchange) -> Observe:
        observe, scope = self._cell(exchange).observe, exchange.scope
        if scope.get("route") is not None and scope["method"] in METHODS:
            kept = scope["route"], scope.get("endpoint"), context_of(scope)
            self._taken[key, exchange.status] = observe, kept
        return observe

    def _went_on(self, exchange: Exchange, seconds: float) -> None:
        route = self._templates.route_of(exchange)
        if route not in self._excluded and exchange.status != CLIENT_LEFT:
            self._background.labels(route).observe(seconds)

    def _cell(self, exchange: Exchange) -> Cell:
        method = exchange.scope["method"]
        route = self._templates.route_of(exchange)
        if route in self._excluded:
            return _EXCLUDED
        key = (method if method in METHODS else OTHER, route, exchange.status)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = self._made.cell((key[0], route, str(exchange.status)))
        return cell
