"""What is measured while a plugin runs, and where it is served."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from asgi_mlperf.host.memory import resident_memory
from asgi_mlperf.runtime.process import left_off_loop, off_loop
from asgi_mlperf.runtime.tracing import Noted, Tracing, mirror_of, tracing
from asgi_mlperf.telemetry.exposition import Exposition
from asgi_mlperf.telemetry.loop_lag import LoopLag
from asgi_mlperf.telemetry.metrics import Metrics
from asgi_mlperf.telemetry.port import own_port
from asgi_mlperf.telemetry.rendering import Renderer
from asgi_mlperf.telemetry.workers import WorkerFiles, several_processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp

    from asgi_mlperf.runtime.process import Process

_TICKS_PER_NOTE = 10  # once a second


@asynccontextmanager
async def telemetry(process: Process, app: Any) -> AsyncIterator[tuple[Metrics, Tracing]]:
    """Measure, and trace what is asked for, inside this block."""
    settings = process.settings.metrics
    if settings.enabled and several_processes():
        await off_loop(WorkerFiles().begin)
    async with AsyncExitStack() as stack:
        mirror = mirror_of(process.settings.tracing, app)
        metrics = Metrics(settings, traffic=process.traffic, app=app, mirror=mirror)
        stack.callback(metrics.instruments.close)
        stack.enter_context(process.pauses.watching())
        told = stack.enter_context(tracing(process, metrics.requests.route_of))
        metrics.called = told.called
        if settings.enabled:
            rss = stack.enter_context(resident_memory())
            metrics.host(cores=process.budget.per_worker, memory_limit=process.memory_limit, rss=rss)
        if settings.enabled and settings.port is not None:
            await stack.enter_async_context(left_off_loop(_own_port(process, metrics, settings.port)))
        yield metrics, told


def scrapes(process: Process, metrics: Metrics) -> dict[str, ASGIApp]:
    """Return the path at which the app's own port answers scrapes, if it does."""
    settings = process.settings.metrics
    if not settings.enabled or settings.port is not None:
        return {}
    renderer = Renderer(settings, metrics.registry)
    return {settings.path: Exposition(renderer, token=_token(process))}


@contextmanager
def measured_lag(process: Process, metrics: Metrics, told: Tracing) -> Iterator[None]:
    """Measure inside this block how late the event loop is, and with it what is only noted elsewhere."""
    if not process.settings.metrics.enabled and told.lag is None:
        yield
        return

    ticks = itertools.count()

    def note() -> None:
        metrics.garbage.spent(process.pauses.total_seconds, now=process.clock())
        metrics.garbage.stands(**asdict(process.pauses.state))
        metrics.write_down()

    def on_tick() -> None:
        paused = list(process.pauses.drain())
        for pause in paused:
            metrics.garbage.paused(pause.generation, pause.where, pause.seconds, pause.freed)
        if paused or not next(ticks) % _TICKS_PER_NOTE:
            note()  # which costs more than all else that an idle worker does

    by_other = metrics.loop_lag.labels("other")
    lag = LoopLag(
        process.loop,
        gc_seconds=lambda: process.pauses.total_seconds,
        by_gc=metrics.loop_lag.labels("gc"),
        by_other=by_other if told.lag is None else Noted(by_other, told.lag, process.clock),
        on_tick=on_tick,
    )
    told.loop_lag = lag
    try:
        with lag.measuring():
            yield
    finally:
        note()  # what the last ticks left out


def _own_port(process: Process, metrics: Metrics, first: int) -> AbstractContextManager[int | None]:
    settings = process.settings.metrics
    return own_port(
        Renderer(settings, metrics.registry),
        host=settings.host,
        first=first,
        workers=process.budget.workers,
        path=settings.path,
        token=_token(process),
    )


def _token(process: Process) -> str | None:
    token = process.settings.metrics.token
    return None if token is None else token.get_secret_value()
