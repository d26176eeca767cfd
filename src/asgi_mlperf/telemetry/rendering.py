"""A scrape as bytes: what all registries collect, in the format and encoding that was asked for."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from asgi_mlperf.telemetry.presets import Instrumentator
from asgi_mlperf.telemetry.turns import short_turns
from asgi_mlperf.telemetry.workers import WorkerFiles, several_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from asgi_mlperf.telemetry.settings import MetricsSettings

log = logging.getLogger("asgi_mlperf")

_SMALL_BYTES = 1_400
_GZIP_LEVEL = 4


class Page(NamedTuple):
    """A rendered scrape."""

    body: bytes
    headers: dict[str, str]


class Wanted(NamedTuple):
    """What a scraper asked for: its ``Accept`` header, and whether it takes gzip."""

    accept: str
    gzip: bool

    @classmethod
    def of(cls, accept: str, accept_encoding: str) -> Wanted:
        """Read the two request headers; an ``Accept`` that makes no sense is not a reason to fail."""
        try:
            choose_encoder(accept)
        except (TypeError, ValueError):
            accept = ""
        return cls(accept, _takes_gzip(accept_encoding))


class Renderer:
    """Renders in whatever thread asks, one at a time, and keeps each page for ``cache_ms``.

    With ``PROMETHEUS_MULTIPROC_DIR`` set, as prometheus-client wants it, a page holds all workers' metrics.
    """

    def __init__(
        self,
        settings: MetricsSettings,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Render ``registry``, and prometheus-client's default registry if the settings say so."""
        self._source = _source(settings, registry)
        self._cache_s = settings.cache_ms / 1000
        self._clock = clock
        self._lock = threading.Lock()
        self._pages: dict[tuple[str, bool], tuple[float, Page]] = {}

    def page(self, wanted: Wanted) -> Page:
        """Return the page, new or at most ``cache_ms`` old. Takes milliseconds: not for the event loop."""
        encode, content_type = choose_encoder(wanted.accept)
        with self._lock:
            made_at, page = self._pages.get((content_type, wanted.gzip), (0.0, None))
            if page is None or self._clock() - made_at >= self._cache_s:
                made_at = self._clock()
                with short_turns():
                    page = _page(encode(self._source), content_type, compressed=wanted.gzip)
                if self._cache_s:
                    self._pages[content_type, wanted.gzip] = made_at, page
            return page


def _page(body: bytes, content_type: str, *, compressed: bool) -> Page:
    headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
    if compressed and len(body) >= _SMALL_BYTES:
        return Page(gzip.compress(body, _GZIP_LEVEL, mtime=0), {**headers, "content-encoding": "gzip"})
    return Page(body, headers)


def _takes_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.lower().split(","):
        coding, _, parameters = part.strip().partition(";")
        if coding.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


class _Collected(CollectorRegistry):
    """What a function collects, as a registry."""

    def __init__(self, source: Callable[[], Iterable[Metric]]) -> None:
        super().__init__()
        self._source = source

    def collect(self) -> Iterator[Metric]:
        yield from self._source()


def _source(settings: MetricsSettings, registry: CollectorRegistry) -> CollectorRegistry:
    collect: Callable[[], Iterable[Metric]]
    if several_processes():
        collect = _of_workers(WorkerFiles(), None if settings.default_registry else registry)
    elif settings.default_registry:
        collect = _of_both(registry)
    else:
        collect = registry.collect
    if settings.preset == "fastapi-instrumentator":
        collect = Instrumentator(collect).collect
    return _Collected(collect)


def _of_both(registry: CollectorRegistry) -> Callable[[], Iterable[Metric]]:
    """Collect both; of a series that both have, as with OpenTelemetry's exporter, theirs is shown."""
    told: set[str] = set()

    def collect() -> Iterator[Metric]:
        theirs = list(REGISTRY.collect())
        names = {family.name for family in theirs}
        for family in registry.collect():
            if family.name not in names:
                yield family
            elif family.name not in told:
                told.add(family.name)
                log.info("%s is left to what is in prometheus-client's default registry", family.name)
        yield from theirs

    return collect


def _of_workers(files: WorkerFiles, only: CollectorRegistry | None) -> Callable[[], Iterable[Metric]]:
    """Collect what all processes wrote; where the default registry is left out, only what is ours."""

    def collect() -> Iterator[Metric]:
        with files.reading():
            families = list(MultiProcessCollector(None, path=files.directory).collect())  # type: ignore[no-untyped-call] # prometheus-client's is untyped
        ours = None if only is None else {family.name for family in only.collect()}
        for family in families:
            if ours is None or family.name in ours:
                yield family

    return collect
