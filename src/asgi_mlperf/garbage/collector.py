"""Carries the policy out: the only place that changes the interpreter's collector."""

from __future__ import annotations

import gc
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.garbage.policy import GarbageSettings, Heap, Policy

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from asgi_mlperf.garbage.pauses import Pause, Pauses
    from asgi_mlperf.hooks import Clock, Closer, Exchange, Traffic

log = logging.getLogger("asgi_mlperf")

_NEVER = 2**31 - 1
_FROZEN_BY_INTERPRETER = 1_000  # CPython 3.12 starts with 375 frozen objects of its own


class Collector:
    """Collects between requests instead of inside them.

    While it is active, automatic full collections are off and automatic young ones are a far backstop.
    When full collections are overdue, or memory nears its limit, a collector callback, which needs no
    event loop, puts CPython's own automatic full collections back until one has run.
    """

    def __init__(
        self,
        settings: GarbageSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        traffic: Traffic,
        pauses: Pauses,
        rss: Callable[[], int],
        memory_limit: int | None,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._clock = clock
        self._traffic = traffic
        self._pauses = pauses
        self._rss = rss
        self._memory_limit = memory_limit or 0
        self._policy = Policy(settings, now=clock(), rss=rss())
        self._young_limits = (self._policy.young_limit(0), self._policy.young_limit(1))
        self._thresholds = gc.get_threshold()
        self._scheduled = False
        self._active = False
        self.valve_open = False

    @contextmanager
    def scheduling(self) -> Iterator[None]:
        """Take the collector's schedule over inside this block."""
        found = gc.get_threshold()
        self._thresholds = (self._settings.backstop_objects, found[1], _NEVER)
        gc.set_threshold(*self._thresholds)
        self._pauses.listeners.append(self._learn)
        self._active = True
        try:
            yield
        finally:
            self._active = False
            self._pauses.listeners.remove(self._learn)
            gc.set_threshold(*found)

    def hook(self, _: Exchange) -> Closer:
        """Look, at the end of each request, whether the moment is good."""
        return self._ended

    def _ended(self, _: Exchange) -> None:
        # A step later the request's own objects are gone: they are freed, not promoted.
        if not self._scheduled and gc.get_count()[0] >= self._young_limits[self._traffic.in_flight > 0]:
            self._scheduled = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._scheduled = False
        if not self._active:
            return
        generation = self._policy.choose(self._heap())
        if generation is not None:
            gc.collect(generation)

    def _heap(self) -> Heap:
        return Heap(
            new_objects=gc.get_count()[0],
            in_flight=self._traffic.in_flight,
            now=self._clock(),
            rss=self._rss(),
            memory_limit=self._memory_limit,
        )

    def _learn(self, pause: Pause) -> None:
        heap = self._heap()
        self._policy.collected(
            pause.generation, seconds=pause.seconds, freed=pause.freed, now=heap.now, rss=heap.rss
        )
        if self._policy.needs_valve(heap):
            self._set_valve(open_=True)
        elif pause.generation == 2:  # noqa: PLR2004 - the oldest generation
            self._set_valve(open_=False)

    def _set_valve(self, *, open_: bool) -> None:
        if open_ != self.valve_open:
            self.valve_open = open_
            young, middle, never = self._thresholds
            gc.set_threshold(young, middle, 10 if open_ else never)


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Collect, then keep what is alive out of every later collection inside this block.

    Left alone where somebody froze a heap before: theirs and ours could not be told apart later.
    """
    gc.collect()
    if gc.get_freeze_count() > _FROZEN_BY_INTERPRETER:
        log.info("the heap was frozen before asgi-mlperf started; left as it is")
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def has_generations() -> bool:
    """Say whether young collections are cheap here: not on free-threaded builds, which scan everything."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())
