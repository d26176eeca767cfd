"""The panels of what comes in and goes out."""

from __future__ import annotations

from asgi_mlperf.telemetry.dashboard.panels import FROM, Panel, Query, Section, by_label, quantiles
from asgi_mlperf.telemetry.dashboard.queries import REQUESTS

_SIGNALS = Section(
    "The four signals",
    (
        Panel(
            "Latency",
            "s",
            "From the first look at a request to the last byte of its response, background tasks left out.",
            quantiles(REQUESTS),
            width=6,
        ),
        Panel(
            "Traffic",
            "reqps",
            "Requests per second by status. 499: the client left.",
            by_label(
                FROM.rate(f"{REQUESTS}_count", by=("http_response_status_code",)),
                "http_response_status_code",
            ),
            width=6,
            stacked=True,
        ),
        Panel(
            "Errors",
            "percentunit",
            "Share of requests answered with 5xx, refusals by the queue (503, 504) among them.",
            (Query(FROM.error_ratio(), "5xx"),),
            width=6,
            thresholds=(0.01,),
        ),
        Panel(
            "Saturation",
            "short",
            "Requests in flight, and model calls and batches that wait for a thread.",
            (
                Query(FROM.total("http_server_active_requests"), "requests in flight"),
                Query(FROM.total("asgi_mlperf_inference_queue_length"), "waiting"),
                Query(FROM.total("asgi_mlperf_inference_running"), "running"),
            ),
            width=6,
        ),
    ),
)

_ROUTES = Section(
    "Routes",
    (
        Panel(
            "p99 by route",
            "s",
            "An empty name stands for what matched no route.",
            by_label(FROM.quantile(0.99, REQUESTS, by=("http_route",)), "http_route"),
            width=12,
        ),
        Panel(
            "Requests by route",
            "reqps",
            "Requests per second.",
            by_label(FROM.rate(f"{REQUESTS}_count", by=("http_route",)), "http_route"),
            width=12,
            stacked=True,
        ),
        Panel(
            "First byte of streams, p99",
            "s",
            "From the first look at a request to the first byte of a streamed response, by route.",
            by_label(FROM.quantile(0.99, "asgi_mlperf_first_byte_seconds", by=("http_route",)), "http_route"),
            width=6,
        ),
        Panel(
            "Background tasks, p99",
            "s",
            "What the app still does after a response, by route. It is not part of the latency.",
            by_label(FROM.quantile(0.99, "asgi_mlperf_background_seconds", by=("http_route",)), "http_route"),
            width=6,
        ),
        Panel(
            "Request bodies",
            "bytes",
            "Mean size of what the app read, by route.",
            by_label(FROM.mean("http_server_request_body_size_bytes", by=("http_route",)), "http_route"),
            width=6,
        ),
        Panel(
            "Response bodies",
            "bytes",
            "Mean size of what was sent, by route.",
            by_label(FROM.mean("http_server_response_body_size_bytes", by=("http_route",)), "http_route"),
            width=6,
        ),
        Panel(
            "Open websockets",
            "short",
            "Websockets that are connected now.",
            (Query(FROM.total("asgi_mlperf_active_websockets"), "open"),),
            width=12,
        ),
        Panel(
            "Websockets, p99",
            "s",
            "How long websockets stay connected, by route.",
            by_label(FROM.quantile(0.99, "asgi_mlperf_websocket_seconds", by=("http_route",)), "http_route"),
            width=12,
        ),
    ),
)

SECTIONS = (_SIGNALS, _ROUTES)
