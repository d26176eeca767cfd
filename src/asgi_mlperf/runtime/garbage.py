"""The garbage collector of this process, from when the app has started until it stops."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.garbage.schedule import scheduled
from asgi_mlperf.garbage.turns import HostTurns
from asgi_mlperf.host.memory import resident_memory
from asgi_mlperf.runtime.process import claim, left_off_loop, off_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from asgi_mlperf.hooks import Closer
    from asgi_mlperf.runtime.process import Process


@asynccontextmanager
async def garbage(process: Process) -> AsyncIterator[tuple[Closer, ...]]:
    """Collect between requests inside this block; yield what to call when they end."""
    settings = process.settings.gc
    with claim("garbage collection", wanted=settings.mode != "off") as mine:
        if not mine:
            yield ()
            return
        turns = await off_loop(HostTurns)
        async with left_off_loop(_scheduled(process, turns)) as closers:
            yield closers


@contextmanager
def _scheduled(process: Process, turns: HostTurns) -> Iterator[tuple[Closer, ...]]:
    with (
        resident_memory() as rss,
        scheduled(
            process.settings.gc,
            loop=process.loop,
            clock=process.clock,
            traffic=process.traffic,
            pauses=process.pauses,
            rss=rss,
            memory_limit=process.memory_limit,
            turns=turns,
        ) as closers,
    ):
        yield closers
