"""The composition root: starts every feature in the one right order, and undoes it in reverse."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from asgi_mlperf.garbage.pauses import Pauses
from asgi_mlperf.garbage.schedule import scheduled
from asgi_mlperf.health import Readiness, draining_on_signals
from asgi_mlperf.hooks import Serving, Traffic
from asgi_mlperf.host.cpu import cpu_budget
from asgi_mlperf.host.environment import exported, thread_counts
from asgi_mlperf.host.memory import memory_limit, resident_memory
from asgi_mlperf.host.selfcheck import checking
from asgi_mlperf.host.tasks import watching
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.topology import affinity, physical_cores
from asgi_mlperf.host.widths import widths
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
        _served(
            process, publisher, runtime, metrics, readiness, endpoints, (*_caps_hooks(caps), *garbage_hooks)
        ),
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
    threads, budget = process.settings.threads, process.budget
    with _claim("native threads", wanted=threads.enabled or threads.pin) as mine, ExitStack() as stack:
        place_new = stack.enter_context(_pinned(process)) if mine and threads.pin else None
        if not mine or not threads.enabled:
            yield None
            return
        if not budget.workers_known:
            log.warning("the number of workers is not known, one is assumed: set ASGI_MLPERF_WORKERS")
        allowed = widths(
            native=threads.native,
            cpus=budget.per_worker,
            cores=budget.cores_per_worker,
            inference_threads=process.inference_threads,
        )
        stack.enter_context(exported(thread_counts(allowed.alone)))
        caps = NativeThreadCaps(allowed, interop=threads.interop, place_new=place_new)
        stack.callback(caps.restore)
        caps.refresh()
        caps.begin_on_loop()
        stack.enter_context(watching(caps))
        yield caps


@contextmanager
def _pinned(process: Process) -> Iterator[Callable[[], None] | None]:
    """Yield what a new thread must call to be placed, None where nothing is pinned."""
    budget = process.budget
    if not hasattr(os, "sched_setaffinity"):
        log.warning("ASGI_MLPERF_THREADS__PIN needs Linux; nothing is pinned")
        yield None
        return
    if not budget.pinnable:
        log.warning(
            "ASGI_MLPERF_THREADS__PIN needs CPUs of one's own; the %s allows %g, nothing is pinned",
            budget.source,
            budget.cpus,
        )
        yield None
        return
    from asgi_mlperf.host.affinity import pinned, placement, worker_slot  # noqa: PLC0415 - Linux only

    with worker_slot(budget.workers) as slot:
        if slot is None:
            log.warning("more workers than ASGI_MLPERF_WORKERS=%d; this one is not pinned", budget.workers)
            yield None
            return
        cores = physical_cores(affinity())
        place = placement(cores, slot, budget.workers, loop_core=process.settings.threads.loop_core)
        with pinned(place):
            yield place.place_new


def _caps_hooks(caps: NativeThreadCaps | None) -> tuple[RequestHook, ...]:
    if caps is None:
        return ()
    begin_on_loop = caps.begin_on_loop

    def hook(_: Exchange) -> Closer:
        begin_on_loop()
        return _no_closer

    return (hook,)


@asynccontextmanager
async def _inference(
    process: Process, caps: NativeThreadCaps | None, metrics: Metrics
) -> AsyncIterator[Runtime]:
    threads = process.inference_threads

    def pool(name: str, executor: ThreadExecutor | InlineExecutor) -> Pool:
        return Pool(
            process.settings.pool,
            slots=threads,
            executor=executor,
            clock=process.clock,
            observers=metrics.pool(name),
        )

    in_threads = ThreadExecutor(threads, around_job=caps.run if caps else _call)
    inline = InlineExecutor()
    default, coroutines = pool("default", in_threads), pool("coroutines", inline)
    async with in_threads.lifespan(), inline.lifespan(), default.lifespan(), coroutines.lifespan():
        yield Runtime(pool=default, coroutine_pool=coroutines, metrics=metrics)


def _call(job: Callable[[], Any]) -> Any:
    return job()


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
        caps.refresh()  # the app's lifespan may have been the first to import torch
        caps.begin_on_loop()
    for warm_up in warm_ups:
        if inspect.iscoroutinefunction(warm_up):
            await warm_up()
        else:
            await runtime.pool.run(warm_up, (), None)
    runtime.set_default_timeout(process.settings.pool.timeout_ms / 1000)
    with _self_check(process, caps, metrics):
        yield


def _self_check(
    process: Process, caps: NativeThreadCaps | None, metrics: Metrics
) -> AbstractContextManager[None]:
    if caps is None or not process.settings.threads.self_check:
        return nullcontext()
    return checking(caps, lambda library, count: metrics.native_threads.labels(library).set(count))


@asynccontextmanager
async def _garbage(process: Process) -> AsyncIterator[tuple[RequestHook, ...]]:
    settings = process.settings.gc
    with _claim("garbage collection", wanted=settings.mode != "off") as mine:
        if not mine:
            yield ()
            return
        with (
            resident_memory() as rss,
            scheduled(
                settings,
                loop=process.loop,
                clock=process.clock,
                traffic=process.traffic,
                pauses=process.pauses,
                rss=rss,
                memory_limit=memory_limit(),
            ) as hooks,
        ):
            yield hooks


@asynccontextmanager
async def _served(
    process: Process,
    publisher: Publisher,
    runtime: Runtime,
    metrics: Metrics,
    readiness: Readiness,
    endpoints: dict[str, ASGIApp],
    hooks: tuple[RequestHook, ...],
) -> AsyncIterator[None]:
    settings = process.settings
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
            metrics.garbage.paused(pause.generation, pause.where, pause.seconds, pause.freed)
        metrics.garbage.spent(process.pauses.total_seconds, now=process.clock())
        metrics.garbage.stands(**asdict(process.pauses.state))

    return LoopLag(
        process.loop,
        gc_seconds=lambda: process.pauses.total_seconds,
        by_gc=metrics.loop_lag.labels("gc"),
        by_other=metrics.loop_lag.labels("other"),
        on_tick=on_tick,
    ).measuring()
