"""The garbage collector of this process, from when the app has started until it stops."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.garbage.schedule import scheduled
from asgi_mlperf.host.memory import memory_limit, resident_memory
from asgi_mlperf.runtime.process import claim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asgi_mlperf.hooks import RequestHook
    from asgi_mlperf.runtime.process import Process


@asynccontextmanager
async def garbage(process: Process) -> AsyncIterator[tuple[RequestHook, ...]]:
    """Collect between requests inside this block; yield the hooks that tell when they end."""
    settings = process.settings.gc
    with claim("garbage collection", wanted=settings.mode != "off") as mine:
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
