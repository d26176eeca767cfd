"""Model calls: the engine that runs them, and the warm-up that makes the first one as fast as the rest."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool

from asgi_mlperf.host.libraries import look_up
from asgi_mlperf.host.niceness import giving_way
from asgi_mlperf.inference.engine import Engine
from asgi_mlperf.inference.options import is_coroutine_function
from asgi_mlperf.runtime.process import off_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from asgi_mlperf.health.readiness import Readiness
    from asgi_mlperf.host.threads import NativeThreadCaps
    from asgi_mlperf.inference.gate import PoolSettings
    from asgi_mlperf.runtime.process import Process
    from asgi_mlperf.telemetry.metrics import Metrics


@asynccontextmanager
async def inference(
    process: Process, pools: Mapping[str, PoolSettings], caps: NativeThreadCaps | None, metrics: Metrics
) -> AsyncIterator[Engine]:
    """Run model calls inside this block."""
    engine = Engine(
        pools=pools,
        threads=process.inference_threads,
        around_job=caps.call if caps else _call,
        around_thread=giving_way,
        when_idle=caps.rest if caps else _do_nothing,
        observers=metrics.pool,
        around_inline=_on_loop(caps) if caps else _call,
        batch_observers=metrics.batches.function,
        spare_cpus=process.budget.per_worker - 1,
    )
    async with engine.lifespan():
        yield engine


@asynccontextmanager
async def warmed_up(
    engine: Engine,
    caps: NativeThreadCaps | None,
    warm_ups: Sequence[Callable[[], Any]],
    readiness: Readiness,
) -> AsyncIterator[None]:
    """Run the app's warm-ups, on the event loop or in inference threads; deadlines begin afterwards."""
    readiness.begin("warming up")
    if caps:
        caps.refresh(await off_loop(look_up))  # the app's lifespan may have been the first to import torch
        caps.begin_on_loop()
    for warm_up in warm_ups:
        await _warm_up(warm_up, engine.pool().run)
    engine.serve()
    yield


@asynccontextmanager
async def warmed_up_stock(warm_ups: Sequence[Callable[[], Any]]) -> AsyncIterator[None]:
    """Run the app's warm-ups where the plugin is off: an app may load its model in one."""
    for warm_up in warm_ups:
        await _warm_up(warm_up, lambda func, _: run_in_threadpool(func))
    yield


async def _warm_up(warm_up: Callable[[], Any], run: Callable[..., Awaitable[Any]]) -> None:
    if is_coroutine_function(warm_up):
        await warm_up()
        return
    (result,) = await run(lambda: [warm_up()], ())
    if inspect.isawaitable(result):
        await result


def _on_loop(caps: NativeThreadCaps) -> Callable[[Callable[[], Any]], Any]:
    def run(job: Callable[[], Any]) -> Any:
        caps.begin_on_loop()
        return job()

    return run


def _do_nothing() -> None:
    """Without caps there is nothing to end."""


def _call(job: Callable[[], Any]) -> Any:
    return job()
