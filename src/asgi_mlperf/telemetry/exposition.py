"""The metrics endpoint: rendered off the event loop, with a slot that inference cannot take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.datastructures import Headers
from starlette.responses import Response

from asgi_mlperf.telemetry.presets import Instrumentator
from asgi_mlperf.telemetry.workers import several_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric
    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.telemetry.metrics import Metrics
    from asgi_mlperf.telemetry.settings import MetricsSettings


class Exposition:
    """An ASGI app that answers a scrape in the format that the scraper asks for."""

    def __init__(self, settings: MetricsSettings, metrics: Metrics) -> None:
        """Serve ``metrics``, with prometheus-client's default registry if the settings say so.

        With ``PROMETHEUS_MULTIPROC_DIR`` set, as prometheus-client wants it, serve all workers' metrics.
        """
        self._registry = _source(settings, metrics)
        self._limiter = anyio.CapacityLimiter(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scrape."""
        encode, content_type = _encoder(Headers(scope=scope).get("accept", ""))
        body = await anyio.to_thread.run_sync(encode, self._registry, limiter=self._limiter)
        await Response(body, headers={"content-type": content_type})(scope, receive, send)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        return choose_encoder("")  # a version that is no number is not a reason to fail


class _Collected(CollectorRegistry):
    """What several sources collect, as one registry."""

    def __init__(self, *sources: Callable[[], Iterable[Metric]]) -> None:
        super().__init__()
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            yield from source()


def _source(settings: MetricsSettings, metrics: Metrics) -> CollectorRegistry:
    if several_processes():
        # No registration: the collector reads files, and is nobody else's.
        registry = _Collected(MultiProcessCollector(None).collect)  # type: ignore[no-untyped-call] # prometheus-client's is untyped
    elif settings.default_registry:
        registry = _Collected(metrics.registry.collect, REGISTRY.collect)
    else:
        registry = _Collected(metrics.registry.collect)
    if settings.preset == "fastapi-instrumentator":
        registry = _Collected(Instrumentator(registry.collect).collect)
    return registry
