"""Carries the policy out: collects between requests, and opens the valve when there is no between."""

from __future__ import annotations

import gc
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from asgi_mlperf.garbage.heap import Generation, Heap
from asgi_mlperf.garbage.lull import REST_S, Lull
from asgi_mlperf.garbage.policy import Policy
from asgi_mlperf.garbage.switches import Switches
from asgi_mlperf.garbage.watch import watching

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from asgi_mlperf.garbage.freezer import Freezer
    from asgi_mlperf.garbage.kinds import CollectorKind
    from asgi_mlperf.garbage.pauses import Pause, Pauses
    from asgi_mlperf.garbage.settings import GarbageSettings
    from asgi_mlperf.hooks import Clock, Exchange, Traffic

_NEVER = 2**31 - 1
_ENDS_PER_LOOK_AT_MEMORY = 16
_ENDS_PER_LOOK_WHEN_TIGHT = 2
_TIGHT_BYTES = 256 << 20


class Collector:
    """Collects between requests instead of inside them.

    While it is active, automatic full collections are off and automatic young ones are a far backstop. A
    thread looks at memory every ``check_ms``, less often while nothing happens. When memory grows and no
    request ends, or a full collection is long overdue, it opens the valve: CPython collects by itself, twice
    as eagerly as a stock process does, until a full collection has run or memory is back.
    """

    def __init__(
        self,
        settings: GarbageSettings,
        *,
        kind: CollectorKind,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        traffic: Traffic,
        pauses: Pauses,
        freezer: Freezer,
        turn: Callable[[], AbstractContextManager[bool]],
        rss: Callable[[], int],
        memory_limit: int | None,
    ) -> None:
        """``rss`` gives resident bytes; ``turn`` yields whether this worker may make a long pause now."""
        self._settings = settings
        self._kind = kind
        self._loop = loop
        self._clock = clock
        self._traffic = traffic
        self._pauses = pauses
        self._freezer = freezer
        self._turn = turn
        self._read_rss = rss
        self._limit = memory_limit or 0
        self._rss = rss()
        self._switches = Switches()
        now = clock()
        self._lull = Lull(traffic, now=now)
        self._policy = Policy(
            settings, now=now, rss=self._rss, old=freezer.left_alone, has_generations=kind.has_generations
        )
        self._quiet_limit = self._busy_limit = _NEVER
        self._ends_per_look = _ENDS_PER_LOOK_AT_MEMORY
        self._scheduled = False
        self._active = False
        self._stir: Callable[[], None] | None = None
        self._intervals = 0.0, 0.0
        self._rests_until = now

    @contextmanager
    def scheduling(self) -> Iterator[None]:
        """Take the collector's schedule over inside this block."""
        self._active = True
        self._set_thresholds(self._heap())
        self._set_limits()
        first_s = self._settings.check_ms / 1000
        with self._switches.restored():
            self._pauses.listeners.append(self._learn)
            try:
                with watching(self.look_around, self._give_up, first_s=first_s) as self._stir:
                    yield
            finally:
                self._active = False
                self._traffic.wake = None
                self._pauses.listeners.remove(self._learn)

    def look_around(self) -> tuple[float, float]:
        """Look at memory, at the clock and at what others did.

        Returns the seconds until the next look, and how many they are where the worker rests until then.
        """
        now, rss = self._clock(), self._read_rss()
        if self._traffic.wake is not None and now < self._rests_until and not self._lull.grew(rss):
            return self._intervals
        self._traffic.wake = None
        self._rss = rss
        self._lull.look(now, objects=gc.get_count()[0], rss=self._rss)
        heap = self._heap()
        self._policy.saw_memory(heap)
        self._pauses.keep_watching()
        self._switches.inspect(self._freezer.times)
        if self._freezer.objects and self._policy.needs_thaw(heap):
            self._policy.thawed(self._freezer.thaw())
        self._mind_the_valve(heap)
        self._set_limits()
        wanted = self._policy.choose(heap) is not None
        if wanted and not self._scheduled:
            self._scheduled = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._look)
        self._report(now)
        rests = self._lull.rests and not wanted and self._may_rest(now)
        self._intervals = self._policy.next_look_s(heap), self._policy.next_look_s(heap, rests=rests)
        return self._intervals

    def _may_rest(self, now: float) -> bool:
        self._traffic.wake = self._stir
        self._rests_until = now + REST_S
        if self._traffic.in_flight:  # a request that came just before could not wake it
            self._traffic.wake = None
            return False
        return True

    def request_ended(self, _: Exchange) -> None:
        """Look, at the end of each request, whether the moment is good."""
        lull, in_flight = self._lull, self._traffic.in_flight
        lull.ends = ends = lull.ends + 1
        if in_flight < lull.lowest:  # noqa: PLR1730 - min() costs five times as much, in every request
            lull.lowest = in_flight
        limit = self._quiet_limit if in_flight <= lull.floor else self._busy_limit
        # A step later the request's own objects are gone: they are freed, not promoted.
        if not self._scheduled and (
            gc.get_count()[0] >= limit or (not ends % self._ends_per_look and self._grew())
        ):
            self._scheduled = True
            self._loop.call_soon(self._look)

    def _grew(self) -> bool:
        self._rss = self._read_rss()
        heap = self._heap()
        self._policy.saw_memory(heap)
        return self._policy.grew(heap)

    def _look(self) -> None:
        self._scheduled = False
        if not self._active:
            return
        generation = self._policy.choose(self._heap())
        if generation is Generation.FULL:
            self._collect_everything()
        elif generation is not None:
            gc.collect(generation)
            self._grew()

    def _collect_everything(self) -> None:
        with self._turn() as mine:
            if not mine:
                return
            gc.collect()
            self._grew()
            if self._policy.was_long and self._freezer.lost():
                self._switches.tell("gc.unfreeze()", "what is alive will be frozen again")
                self._policy.thawed(0)
            if self._freezer.available and self._policy.wants_freeze(self._heap()):
                self._freezer.freeze(self._policy.old_objects)
                self._policy.froze()

    def _heap(self) -> Heap:
        new_objects, new_passes, _ = gc.get_count()
        now = self._clock()
        return Heap(
            now=now,
            new_objects=new_objects,
            new_passes=new_passes,
            in_flight=self._traffic.in_flight,
            floor=self._lull.floor,
            quiet_s=self._lull.quiet_s(now),
            rss=self._rss,
            limit=self._limit,
        )

    def _learn(self, pause: Pause) -> None:
        # Called inside a collection, in any thread, perhaps inside a lock: arithmetic only.
        if not self._active:
            return
        self._policy.collected(
            pause.generation,
            seconds=pause.seconds,
            candidates=pause.candidates,
            freed=pause.freed,
            now=self._clock(),
        )
        heap = self._heap()
        if self._pauses.state.valve_open_for and pause.generation == Generation.FULL:
            self._pauses.state.valve_open_for = None
            self._set_thresholds(heap)
        else:
            self._mind_the_valve(heap)

    def _mind_the_valve(self, heap: Heap) -> None:
        state = self._pauses.state
        if state.valve_open_for:
            if self._policy.valve_can_close(heap):
                state.valve_open_for = None
        elif reason := self._policy.valve_reason(heap):
            state.valve_open_for = reason
            state.valve_openings[reason] += 1
        self._set_thresholds(heap)

    def _set_thresholds(self, heap: Heap) -> None:
        young, middle, old = self._switches.found
        if self._pauses.state.valve_open_for:
            # More eager than as found: a stock process is not this close to its limit when it begins.
            self._switches.set(young // 2 or young, middle, old)
        else:
            self._switches.set(self._policy.backstop(heap, automatic=young), middle, _NEVER)

    def _set_limits(self) -> None:
        if self._policy.deferred_s(self._clock()) > 0:
            self._quiet_limit = self._busy_limit = 0
        elif self._kind.has_generations:
            self._quiet_limit = self._policy.young_limit(quiet=True)
            self._busy_limit = self._policy.young_limit(quiet=False)
        else:
            self._quiet_limit = self._busy_limit = _NEVER
        tight = self._limit and self._limit - self._rss < _TIGHT_BYTES
        self._ends_per_look = _ENDS_PER_LOOK_WHEN_TIGHT if tight else _ENDS_PER_LOOK_AT_MEMORY

    def _report(self, now: float) -> None:
        state = self._pauses.state
        state.frozen_objects = self._freezer.objects
        state.deferred_s = self._policy.deferred_s(now)

    def _give_up(self) -> None:
        self._active = False
        self._pauses.state.valve_open_for = None
        self._switches.set(*self._switches.found)
