"""The composition root: starts every feature in the one right order, and undoes it in reverse."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asgi_mlperf.garbage.pauses import Pauses
from asgi_mlperf.garbage.schedule import scheduled
from asgi_mlperf.health import Readiness, draining_on_signals
from asgi_mlperf.hooks import Serving, Traffic
from asgi_mlperf.host.cpu import cpu_budget
from asgi_mlperf.host.memory import memory_limit, rss_reader
from asgi_mlperf.host.threads import NativeThreadCaps, capping_new_threads
from asgi_mlperf.inference.batching import Batcher, is_coroutine_function
from asgi_mlperf.inference.executors import InlineExecutor, ThreadExecutor
from asgi_mlperf.inference.pool import Pool, name_of
from asgi_mlperf.telemetry.exposition import Exposition
from asgi_mlperf.telemetry.loop_lag import LoopLag
from asgi_mlperf.telemetry.metrics import Metrics
from asgi_mlperf.wire.responses import JSONSettings, json_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from starlette.types import ASGIApp

    from asgi_mlperf.hooks import Clock, Closer, Exchange, RequestHook
    from asgi_mlperf.host.cpu import CPUBudget
    from asgi_mlperf.settings import Settings

log = logging.getLogger("asgi_mlperf")

_claimed: set[str] = set()
"""What is process-wide by nature and has a plugin of this process already."""


class Runtime:
    """What handlers use while the plugin's lifespan runs on their event loop."""

    def __init__(self, *, pool: Pool, coroutine_pool: Pool, metrics: Metrics) -> None:
        """Hold the parts; nothing is started here."""
        self.pool = pool
        self._coroutine_pool = coroutine_pool
        self._metrics = metrics
        self._batchers: dict[Any, Batcher] = {}

    def batcher(self, func: Callable[[list[Any]], Any], max_size: int) -> Batcher:
        """Return the batcher of ``func``, the same one every time."""
        batcher = self._batchers.get(func)
        if batcher is None:
            pool = self._coroutine_pool if is_coroutine_function(func) else self.pool
            sizes = self._metrics.batch_size.labels(name_of(func))
            batcher = self._batchers[func] = Batcher(func, max_size=max_size, pool=pool, sizes=sizes)
        return batcher

    def set_default_timeout(self, seconds: float) -> None:
        """Give calls without a timeout of their own this deadline from now on."""
        self.pool.default_timeout_s = self._coroutine_pool.default_timeout_s = seconds

    async def drain(self, timeout_s: float) -> None:
        """Let running and waiting model calls finish, at most ``timeout_s`` seconds."""
        await asyncio.gather(self.pool.drain(timeout_s), self._coroutine_pool.drain(timeout_s))


@dataclass(frozen=True, slots=True)
class Process:
    """What every stage of one start works with."""

    settings: Settings
    loop: asyncio.AbstractEventLoop
    clock: Clock
    traffic: Traffic
    pauses: Pauses
    budget: CPUBudget
    inference_threads: int


class Publisher:
    """Where a start puts what others may use, and takes it back at the end."""

    def __init__(self) -> None:
        """Begin with nothing running."""
        self.runtimes: dict[asyncio.AbstractEventLoop, Runtime] = {}
        self.servings: dict[asyncio.AbstractEventLoop, Serving] = {}

    @contextmanager
    def runtime(self, loop: asyncio.AbstractEventLoop, runtime: Runtime) -> Iterator[None]:
        """Offer ``runtime`` to the handlers on ``loop``."""
        self.runtimes[loop] = runtime
        try:
            yield
        finally:
            del self.runtimes[loop]

    @contextmanager
    def serving(self, loop: asyncio.AbstractEventLoop, serving: Serving) -> Iterator[None]:
        """Offer ``serving`` to the middleware on ``loop``, in place of what was there."""
        before = self.servings.get(loop)
        self.servings[loop] = serving
        try:
            yield
        finally:
            if before is None:
                del self.servings[loop]
            else:
                self.servings[loop] = before


@asynccontextmanager
async def running(
    settings: Settings,
    app: Any,
    own_lifespan: Callable[[Any], AbstractAsyncContextManager[Any]],
    warm_ups: Sequence[Callable[[], Any]],
    publisher: Publisher,
) -> AsyncIterator[Any]:
    """Start everything around the app's own lifespan and yield what that yields.

    A failure on the way in undoes what came before it, and on the way out no step is skipped.
    """
    process = _process(settings)
    readiness = Readiness()
    async with (
        _telemetry(process, app) as metrics,
        _native_threads(process) as caps,
        _inference(process, caps, metrics) as runtime,
        _published(process, publisher, runtime, _endpoints(settings, app, readiness, metrics)) as endpoints,
        own_lifespan(app) as state,
        _warmed_up(process, runtime, caps, metrics, warm_ups),
        _garbage(process) as garbage_hooks,
        _served(process, publisher, runtime, metrics, readiness, endpoints, garbage_hooks),
    ):
        yield state


def _process(settings: Settings) -> Process:
    clock, traffic = time.perf_counter, Traffic()
    budget = cpu_budget(cpus=settings.threads.cpus, workers=settings.workers, environ=os.environ)
    return Process(
        settings=settings,
        loop=asyncio.get_running_loop(),
        clock=clock,
        traffic=traffic,
        pauses=Pauses(clock, traffic),
        budget=budget,
        inference_threads=settings.pool.threads or budget.per_worker,
    )


@contextmanager
def _claim(name: str, *, wanted: bool) -> Iterator[bool]:
    if not wanted or name in _claimed:
        if wanted:
            log.warning("another plugin of this process already rules %s; this one leaves it alone", name)
        yield False
        return
    _claimed.add(name)
    try:
        yield True
    finally:
        _claimed.discard(name)


@asynccontextmanager
async def _telemetry(process: Process, app: Any) -> AsyncIterator[Metrics]:
    metrics = Metrics(process.settings.metrics, clock=process.clock, app=app)
    with process.pauses.watching():
        yield metrics


@asynccontextmanager
async def _native_threads(process: Process) -> AsyncIterator[NativeThreadCaps | None]:
    threads = process.settings.threads
    with _claim("native threads", wanted=threads.enabled or threads.pin) as mine:
        if not mine:
            yield None
            return
        with _pinned(process) if threads.pin else nullcontext():
            if not threads.enabled:
                yield None
                return
            limit = threads.native or max(1, process.budget.per_worker // process.inference_threads)
            caps = NativeThreadCaps(limit, threads.interop)
            try:
                caps.apply()
                with capping_new_threads(caps.apply):
                    yield caps
            finally:
                caps.restore()


@contextmanager
def _pinned(process: Process) -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        log.warning("ASGI_MLPERF_THREADS__PIN needs Linux; nothing is pinned")
        yield
        return
    from asgi_mlperf.host import affinity  # noqa: PLC0415 - file locks and masks that other systems lack

    workers = process.budget.workers
    with affinity.worker_slot(workers) as slot:
        if slot is None:
            log.warning("more workers than ASGI_MLPERF_WORKERS=%d; this one is not pinned", workers)
            yield
            return
        cpus = affinity.cpus_of_slot(sorted(os.sched_getaffinity(0)), slot, workers)
        with affinity.pinned(cpus):
            yield


@asynccontextmanager
async def _inference(
    process: Process, caps: NativeThreadCaps | None, metrics: Metrics
) -> AsyncIterator[Runtime]:
    threads = process.inference_threads
    prepare = caps.apply if caps else _nothing

    def pool(name: str, executor: ThreadExecutor | InlineExecutor) -> Pool:
        return Pool(
            process.settings.pool,
            slots=threads,
            executor=executor,
            clock=process.clock,
            observers=metrics.pool(name),
        )

    in_threads, inline = ThreadExecutor(threads, prepare_thread=prepare), InlineExecutor()
    default, coroutines = pool("default", in_threads), pool("coroutines", inline)
    async with in_threads.lifespan(), inline.lifespan(), default.lifespan(), coroutines.lifespan():
        yield Runtime(pool=default, coroutine_pool=coroutines, metrics=metrics)


def _nothing() -> None:
    pass


def _endpoints(settings: Settings, app: Any, readiness: Readiness, metrics: Metrics) -> dict[str, ASGIApp]:
    endpoints: dict[str, ASGIApp] = {
        settings.health.live_path: readiness.live,
        settings.health.ready_path: readiness.ready,
    }
    if settings.metrics.enabled:
        endpoints[settings.metrics.path] = Exposition(settings.metrics, metrics)
    own = {getattr(route, "path", None) for route in getattr(app, "routes", ())}
    for path in endpoints.keys() & own:
        log.info("the app serves %s itself; its own route stays in place", path)
    return {path: endpoint for path, endpoint in endpoints.items() if path not in own}


@asynccontextmanager
async def _published(
    process: Process, publisher: Publisher, runtime: Runtime, endpoints: dict[str, ASGIApp]
) -> AsyncIterator[dict[str, ASGIApp]]:
    starting = Serving(clock=process.clock, traffic=process.traffic, endpoints=endpoints, hooks=())
    with publisher.runtime(process.loop, runtime), publisher.serving(process.loop, starting):
        yield endpoints


@asynccontextmanager
async def _warmed_up(
    process: Process,
    runtime: Runtime,
    caps: NativeThreadCaps | None,
    metrics: Metrics,
    warm_ups: Sequence[Callable[[], Awaitable[None] | None]],
) -> AsyncIterator[None]:
    if caps:
        caps.apply()  # the app's lifespan may have been the first to import torch
        for library, count in caps.report().items():
            metrics.native_threads.labels(library).set(count)
    for warm_up in warm_ups:
        if inspect.iscoroutinefunction(warm_up):
            await warm_up()
        else:
            await runtime.pool.run(warm_up, (), None)
    runtime.set_default_timeout(process.settings.pool.timeout_ms / 1000)
    yield


@asynccontextmanager
async def _garbage(process: Process) -> AsyncIterator[tuple[RequestHook, ...]]:
    settings = process.settings.gc
    with _claim("garbage collection", wanted=settings.mode != "off") as mine:
        if not mine:
            yield ()
            return
        with scheduled(
            settings,
            loop=process.loop,
            clock=process.clock,
            traffic=process.traffic,
            pauses=process.pauses,
            rss=rss_reader(),
            memory_limit=memory_limit(),
        ) as hooks:
            yield hooks


@asynccontextmanager
async def _served(
    process: Process,
    publisher: Publisher,
    runtime: Runtime,
    metrics: Metrics,
    readiness: Readiness,
    endpoints: dict[str, ASGIApp],
    garbage_hooks: tuple[RequestHook, ...],
) -> AsyncIterator[None]:
    settings = process.settings
    hooks = garbage_hooks
    if settings.metrics.enabled:
        hooks = (metrics.hook, *hooks)
    if settings.json != JSONSettings():
        hooks = (*hooks, _json_hook(settings.json))
    serving = Serving(clock=process.clock, traffic=process.traffic, endpoints=endpoints, hooks=hooks)
    try:
        with (
            publisher.serving(process.loop, serving),
            _measured_lag(process, metrics),
            draining_on_signals(readiness),
            readiness.serving(),
        ):
            yield
    finally:
        await runtime.drain(settings.health.drain_ms / 1000)


def _json_hook(settings: JSONSettings) -> RequestHook:
    def hook(_: Exchange) -> Closer:
        json_settings.set(settings)
        return _no_closer

    return hook


def _no_closer(_: Exchange) -> None:
    pass


def _measured_lag(process: Process, metrics: Metrics) -> AbstractContextManager[None]:
    if not process.settings.metrics.enabled:
        return nullcontext()

    def on_tick() -> None:
        for pause in process.pauses.drain():
            metrics.gc_pause.labels(str(pause.generation), pause.where).observe(pause.seconds)

    return LoopLag(
        process.loop,
        gc_seconds=lambda: process.pauses.total_seconds,
        by_gc=metrics.loop_lag.labels("gc"),
        by_other=metrics.loop_lag.labels("other"),
        on_tick=on_tick,
    ).measuring()
