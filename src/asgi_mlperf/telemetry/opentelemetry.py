"""The same measurements through OpenTelemetry, and spans of model calls; nothing else here needs it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import metrics, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.trace import Tracer

    from asgi_mlperf.hooks import Clock, ModelCall

_SCOPE = "asgi_mlperf"
_NAMES = {
    "http_server_request_duration_seconds": "http.server.request.duration",
    "http_server_request_body_size_bytes": "http.server.request.body.size",
    "http_server_response_body_size_bytes": "http.server.response.body.size",
    "http_server_active_requests": "http.server.active_requests",
}
_ATTRIBUTES = {
    "http_request_method": "http.request.method",
    "http_route": "http.route",
    "http_response_status_code": "http.response.status_code",
}
_UNITS = {"_seconds": "s", "_bytes": "By"}


class Name(NamedTuple):
    """A series' name and unit in OpenTelemetry's terms."""

    name: str
    unit: str

    @classmethod
    def of(cls, name: str) -> Name:
        """Translate a name of Prometheus: the unit is no part of it, dots part what belongs together."""
        stem, unit = name, "1"
        for suffix, symbol in _UNITS.items():
            if name.endswith(suffix):
                stem, unit = name.removesuffix(suffix), symbol
        return cls(_NAMES.get(name) or stem.replace("asgi_mlperf_", "asgi_mlperf.", 1), unit)


def attributes_of(labels: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    """Translate labels; what is empty is left out, as OpenTelemetry has it for an unknown route."""
    translated: dict[str, Any] = {}
    for label, value in zip(labels, values, strict=True):
        if value:
            name = _ATTRIBUTES.get(label, label)
            translated[name] = int(value) if name == "http.response.status_code" else value
    return translated


class Mirror:
    """Makes an OpenTelemetry instrument for each of ours, but for those that are left to others."""

    def __init__(self, *, left_out: frozenset[str] = frozenset(), meter: Meter | None = None) -> None:
        """Use ``meter``, by default one of the global provider, be it set now or later."""
        self._meter = meter or metrics.get_meter(_SCOPE)
        self._left_out = left_out

    def histogram(
        self, name: str, text: str, bounds: Sequence[float]
    ) -> Callable[[float, Mapping[str, Any]], None] | None:
        """Return what records a measurement."""
        if name in self._left_out:
            return None
        known = Name.of(name)
        made = self._meter.create_histogram(
            known.name, known.unit, text, explicit_bucket_boundaries_advisory=[*map(float, bounds)]
        )
        return made.record

    def counter(self, name: str, text: str) -> Callable[[float, Mapping[str, Any]], None]:
        """Return what adds."""
        known = Name.of(name)
        return self._meter.create_counter(known.name, known.unit, text).add

    def gauge(self, name: str, text: str) -> Callable[[float, Mapping[str, Any]], None]:
        """Return what sets."""
        known = Name.of(name)
        return self._meter.create_gauge(known.name, known.unit, text).set

    def function(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Let a gauge be read whenever OpenTelemetry wants to know."""
        if name in self._left_out:
            return
        known = Name.of(name)

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [metrics.Observation(read())]

        self._meter.create_observable_gauge(known.name, [observe], known.unit, text)

    @staticmethod
    def trace() -> dict[str, str] | None:
        """Return the ids of the current span as an exemplar's labels, None if nobody keeps its trace."""
        context = trace.get_current_span().get_span_context()
        if not context.is_valid or not context.trace_flags.sampled:
            return None
        return {
            "trace_id": trace.format_trace_id(context.trace_id),
            "span_id": trace.format_span_id(context.span_id),
        }


class Spans:
    """Spans of model calls under the span that is current where they are made."""

    def __init__(self, clock: Clock, tracer: Tracer | None = None) -> None:
        """``clock`` is the one that calls are timed with."""
        self._tracer = tracer or trace.get_tracer(_SCOPE)
        self._epoch_ns = time.time_ns() - int(clock() * 1e9)

    def called(self, call: ModelCall) -> None:
        """Add the spans of a call that is over: ``queue``, then ``run``, or ``batch`` if it was batched."""
        if not trace.get_current_span().is_recording():
            return
        attributes = {"asgi_mlperf.function": call.name, "asgi_mlperf.pool": call.pool}
        self._span("queue", call.queued_at, call.started_at or call.ended_at, attributes)
        if call.batch_size:
            sized = {**attributes, "asgi_mlperf.batch_size": call.batch_size}
            self._span("batch", call.started_at, call.ended_at, sized)
        elif call.started_at:
            self._span("run", call.started_at, call.ended_at, attributes)

    def _span(self, name: str, began_at: float, ended_at: float, attributes: Mapping[str, Any]) -> None:
        span = self._tracer.start_span(name, attributes=attributes, start_time=self._ns(began_at))
        span.end(self._ns(ended_at))

    def _ns(self, at: float) -> int:
        return self._epoch_ns + int(at * 1e9)
