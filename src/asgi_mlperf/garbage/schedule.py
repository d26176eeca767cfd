"""The wing's parts put together: frozen, then scheduled, as far as the mode and the interpreter go."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.garbage.collector import Collector
from asgi_mlperf.garbage.freezer import Freezer
from asgi_mlperf.garbage.kinds import collector_kind

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from asgi_mlperf.garbage.pauses import Pauses
    from asgi_mlperf.garbage.settings import GarbageSettings
    from asgi_mlperf.garbage.turns import HostTurns
    from asgi_mlperf.hooks import Clock, Closer, Traffic


@contextmanager
def scheduled(
    settings: GarbageSettings,
    *,
    loop: asyncio.AbstractEventLoop,
    clock: Clock,
    traffic: Traffic,
    pauses: Pauses,
    rss: Callable[[], int],
    memory_limit: int | None,
    turns: HostTurns,
) -> Iterator[tuple[Closer, ...]]:
    """Rule the collector inside this block as ``settings.mode`` says; yield what requests must call.

    Afterwards thresholds, callbacks and the freeze count are as they were found.
    """
    if settings.mode == "off":
        yield ()
        return
    freezer = Freezer()
    with freezer.frozen():
        pauses.state.frozen_objects = freezer.objects
        if settings.mode == "freeze":
            yield ()
            return
        collector = Collector(
            settings,
            kind=collector_kind(),
            loop=loop,
            clock=clock,
            traffic=traffic,
            pauses=pauses,
            freezer=freezer,
            turn=turns.take,
            rss=rss,
            memory_limit=memory_limit,
        )
        with collector.scheduling():
            yield (collector.request_ended,)
