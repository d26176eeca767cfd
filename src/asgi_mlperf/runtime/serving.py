"""What the middleware works with: hooks and endpoints, while the app starts and while it serves."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from asgi_mlperf.health.draining import draining_on_signals
from asgi_mlperf.hooks import Serving
from asgi_mlperf.runtime.page import pages
from asgi_mlperf.runtime.telemetry import measured_lag, scrapes
from asgi_mlperf.telemetry.routes import templates_of
from asgi_mlperf.wire.responses import JSONSettings, json_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from asgi_mlperf.health.readiness import Readiness
    from asgi_mlperf.hooks import Closer, Opener
    from asgi_mlperf.inference.engine import Engine
    from asgi_mlperf.runtime.health import Health
    from asgi_mlperf.runtime.process import Process, Publisher
    from asgi_mlperf.runtime.tracing import Tracing
    from asgi_mlperf.telemetry.metrics import Metrics

log = logging.getLogger("asgi_mlperf")


def endpoints_of(process: Process, health: Health, metrics: Metrics) -> dict[str, ASGIApp]:
    """Return the paths that the plugin answers itself."""
    settings = process.settings.health
    return {
        settings.live_path: health.heartbeat.live,
        settings.ready_path: health.readiness.ready,
        settings.startup_path: health.readiness.started,
        **scrapes(process, metrics),
        **pages(process, health, metrics),
    }


def without_the_apps_own(endpoints: dict[str, ASGIApp], app: Any) -> dict[str, ASGIApp]:
    """Leave out the paths for which the app, once started, has a route or a mount of its own."""
    own = templates_of(app)
    for path in endpoints.keys() & own:
        log.info("the app serves %s itself; its own route stays in place", path)
    return {path: endpoint for path, endpoint in endpoints.items() if path not in own}


@asynccontextmanager
async def published(
    process: Process, publisher: Publisher, engine: Engine, endpoints: dict[str, ASGIApp]
) -> AsyncIterator[dict[str, ASGIApp]]:
    """Offer model calls, health and metrics inside this block, while the app still starts."""
    starting = Serving(clock=process.clock, traffic=process.traffic, endpoints=endpoints)
    with publisher.engine(process.loop, engine), publisher.serving(process.loop, starting):
        yield endpoints


@asynccontextmanager
async def served(
    process: Process,
    publisher: Publisher,
    engine: Engine,
    metrics: Metrics,
    told: Tracing,
    readiness: Readiness,
    endpoints: dict[str, ASGIApp],
    openers: tuple[Opener, ...],
    closers: tuple[Closer, ...],
) -> AsyncIterator[None]:
    """Serve requests inside this block; then let what runs finish within the drain time."""
    settings = process.settings
    drain_s = settings.health.drain_ms / 1000
    metrics.ready(lambda: not readiness.reasons)
    if settings.json != JSONSettings():
        openers = (*openers, partial(json_settings.set, settings.json))
    serving = Serving(
        clock=process.clock,
        traffic=process.traffic,
        endpoints=endpoints,
        openers=(*openers, *metrics.requests.openers),
        closers=(*closers, *metrics.requests.closers, *told.closers),
        starters=told.starters,
        websocket=metrics.requests.websocket,
        afterwards=metrics.requests.afterwards,
    )

    def drain() -> None:
        process.loop.call_soon_threadsafe(process.loop.call_later, drain_s, engine.close)

    try:
        with (
            publisher.serving(process.loop, serving),
            measured_lag(process, metrics, told),
            draining_on_signals(readiness, drain),
            readiness.serving(),
        ):
            yield
    finally:
        await engine.drain(drain_s)
