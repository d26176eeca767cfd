"""Who else measures the requests of an app, so that nothing is told to OpenTelemetry twice."""

from __future__ import annotations

from typing import Any, NamedTuple

_DURATION_AND_ACTIVE = frozenset({"http_server_request_duration_seconds", "http_server_active_requests"})
_ALL = _DURATION_AND_ACTIVE | {
    "http_server_request_body_size_bytes",
    "http_server_response_body_size_bytes",
}


class Neighbour(NamedTuple):
    """What measures requests with OpenTelemetry, and the series (in our names) that are left to it."""

    name: str
    series: frozenset[str]


def neighbour_of(app: Any) -> Neighbour | None:
    """Return what else tells OpenTelemetry of the requests of ``app``, None if nothing is known to."""
    middleware = {getattr(each, "cls", None).__module__ for each in getattr(app, "user_middleware", ()) or ()}
    instrumented = getattr(app, "_is_instrumented_by_opentelemetry", False)
    if instrumented or any(name.startswith("opentelemetry.instrumentation.") for name in middleware):
        return Neighbour("OpenTelemetry's instrumentation of the app", _ALL)
    native = getattr(app, "_telemetry", None)
    if isinstance(native, dict) and native.get("metrics"):
        return Neighbour("FastAPI's own telemetry", _DURATION_AND_ACTIVE)
    return None
