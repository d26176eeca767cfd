"""The composition root: starts every feature in the one right order, and undoes it in reverse."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asgi_mlperf.runtime.calls import inference, warmed_up, warmed_up_stock
from asgi_mlperf.runtime.garbage import garbage
from asgi_mlperf.runtime.health import Health, watched
from asgi_mlperf.runtime.process import Publisher, process_of
from asgi_mlperf.runtime.serving import endpoints_of, published, served, without_the_apps_own
from asgi_mlperf.runtime.telemetry import telemetry
from asgi_mlperf.runtime.threads import caps_openers, native_threads, self_checked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from asgi_mlperf.health.checks import Check
    from asgi_mlperf.inference.gate import PoolSettings
    from asgi_mlperf.settings import Settings

__all__ = ["Publisher", "running", "warmed_up_stock"]


@asynccontextmanager
async def running(
    settings: Settings,
    pools: Mapping[str, PoolSettings],
    app: Any,
    own_lifespan: Callable[[Any], AbstractAsyncContextManager[Any]],
    warm_ups: Sequence[Callable[[], Any]],
    checks: Sequence[Check],
    publisher: Publisher,
) -> AsyncIterator[Any]:
    """Start everything around the app's own lifespan and yield what that yields.

    A failure on the way in undoes what came before it, and on the way out no step is skipped.
    """
    process = await process_of(settings)
    health = Health(process, checks)
    async with (
        telemetry(process, app) as (metrics, told),
        native_threads(process) as caps,
        inference(process, pools, caps, metrics) as engine,
        published(process, publisher, engine, endpoints_of(process, health, metrics)) as endpoints,
        own_lifespan(app) as state,
        warmed_up(engine, caps, warm_ups, health.readiness),
        self_checked(process, caps, metrics),
        garbage(process) as garbage_closers,
        watched(health, engine),
        served(
            process,
            publisher,
            engine,
            metrics,
            told,
            health.readiness,
            without_the_apps_own(endpoints, app),
            caps_openers(caps),
            garbage_closers,
        ),
    ):
        yield state
