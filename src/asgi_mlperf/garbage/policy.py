"""When to collect what: decisions from counts, clock and memory, without any effect.

Three ideas meet here. Pitchfork's out-of-band collection: collect between requests, when nothing
request-scoped is alive, so that nothing is promoted too early. Go's pacer: a budget for the share of
time and a target for a single pause, fed by what collections really cost. CPython's own rule for full
collections: only when survivors are a good part of what such a collection must look at.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from asgi_mlperf.garbage.heap import Generation, Heap
from asgi_mlperf.garbage.lull import REST_S
from asgi_mlperf.garbage.pacer import Pacer

if TYPE_CHECKING:
    from asgi_mlperf.garbage.settings import GarbageSettings

_MEBIBYTE = 1 << 20
_GROWTH_SHARE = 0.10
_FREEZABLE_OBJECTS = 20_000
_FREEZE_BUSY_AFTER = 4
_BACKSTOP_BYTES_PER_OBJECT = 1024
_TIGHT_BYTES = 512 * _MEBIBYTE
_FASTEST_GROWTH = 8 * 1024 * _MEBIBYTE  # bytes a second that one thread can fill
_LEAST_INTERVAL_S = 0.002
_FAST_GROWTH = 2  # times what makes a full collection due: faster than quiet moments come
_LEAST_GROWTH = 4 * _MEBIBYTE
_NEW_PASSES = 10  # as many as CPython makes


class Policy:
    """Decides from what it is shown and what past collections cost and freed; touches nothing.

    On objects that live on, young collections spend at most ``young_share`` of the time and full ones
    ``full_share``; each may be ahead by one collection. Growing memory comes before the share, and what
    somebody else starts is not counted, CPython included.
    """

    def __init__(
        self, settings: GarbageSettings, *, now: float, rss: int, old: int = 0, has_generations: bool = True
    ) -> None:
        """Begin at ``now`` (seconds) with ``rss`` bytes resident; ``old`` objects cannot be frozen."""
        self._settings = settings
        self._has_generations = has_generations
        self._pacer = Pacer(settings.young_share, settings.full_share, now=now)
        self._pacer.thawed(old)
        self._can_freeze = not old
        self._live_rss: int | None = rss
        self._left_rss: int | None = rss
        self._due_since: float | None = None
        self._thaw_above = 0.0
        self._thawed = False

    def choose(self, heap: Heap) -> Generation | None:
        """Say what to collect at the end of a request, or at a quiet moment."""
        if self._full_is_due(heap) and self._is_moment_for_full(heap):
            return Generation.FULL
        if not self._has_generations:
            return None
        left_by_new_passes = heap.new_passes > 0 and not heap.in_flight
        enough = left_by_new_passes or heap.new_objects >= self.young_limit(quiet=heap.is_quiet)
        affordable = heap.now >= self._pacer.young_from
        if not (enough and affordable) and not self.grew(heap):
            return None
        # What is alive in a request would be promoted for good; a generation between spares most of it.
        spared = heap.in_flight and heap.new_passes < _NEW_PASSES
        return Generation.NEW if spared else Generation.YOUNG

    def grew(self, heap: Heap) -> bool:
        """Say whether memory grew enough since the last collection to be worth another."""
        if self._left_rss is None:
            return False
        growth = self._settings.young_growth_mb * _MEBIBYTE
        room = max(heap.limit - self._left_rss, 0) if heap.limit else 4 * growth
        return heap.rss - self._left_rss >= max(min(growth, room / 4), _LEAST_GROWTH)

    def young_limit(self, *, quiet: bool) -> int:
        """New objects from which a young collection is considered."""
        settings = self._settings
        if quiet:
            return settings.young_objects
        affordable = int(settings.pause_ms / 1000 / self._pacer.seconds_per_object)
        return min(max(affordable, settings.young_objects), settings.backstop_objects)

    def backstop(self, heap: Heap, automatic: int) -> int:
        """New objects at which CPython should collect by itself.

        Nearer where memory is short, but never nearer than ``automatic``, where a stock process would.
        """
        limit = self._settings.backstop_objects
        if heap.limit:
            room = max(heap.limit - heap.rss, 0)
            # The shorter memory is, the larger may be what hangs on an object.
            fitting = int(room / 2 / _BACKSTOP_BYTES_PER_OBJECT * min(room / _TIGHT_BYTES, 1))
            limit = min(limit, 1 << fitting.bit_length() >> 1)
        return max(limit, automatic)

    def next_look_s(self, heap: Heap, *, rests: bool = False) -> float:
        """Return seconds until the next look at memory: before a blocked loop can fill what is free."""
        usual = max(self._settings.check_ms / 1000, REST_S if rests else 0)
        if not heap.limit:
            return usual
        room = max(heap.limit - heap.rss, 0)
        return min(usual, max(room / 2 / _FASTEST_GROWTH, _LEAST_INTERVAL_S))

    def wants_freeze(self, heap: Heap) -> bool:
        """Say, right after a full collection, whether what it left is better not looked at again."""
        pacer = self._pacer
        if self._thawed and not heap.in_flight:
            return True
        if self._is_idle_for_long(heap):
            return pacer.old >= _FREEZABLE_OBJECTS
        patience = _FREEZE_BUSY_AFTER if heap.in_flight else 1
        return self.was_long and pacer.back_off > patience

    def needs_thaw(self, heap: Heap) -> bool:
        """Say whether memory is so short that frozen objects must be looked at as well."""
        if self._thawed or not heap.limit:
            return False
        return heap.rss > max(self._settings.memory_share * heap.limit, self._thaw_above)

    def valve_reason(self, heap: Heap) -> Literal["memory", "overdue"] | None:
        """Say why CPython must collect by itself: nobody got to ``choose`` in time."""
        if self._live_rss is not None and heap.rss > self._live_rss + self._valve_growth(heap):
            return "memory"
        if self._full_is_due(heap) and self.deferred_s(heap.now) >= 2 * self._settings.max_deferral_s:
            return "overdue"
        return None

    def valve_can_close(self, heap: Heap) -> bool:
        """Say whether the reason to open the valve is gone without a full collection."""
        calm = self._live_rss is None or heap.rss < self._live_rss + self._valve_growth(heap) / 2
        return calm and self.deferred_s(heap.now) < self._settings.max_deferral_s

    def deferred_s(self, now: float) -> float:
        """Return for how many seconds a full collection has been due."""
        since = self._due_since
        return 0.0 if since is None else max(0.0, now - since)

    def collected(self, generation: int, *, seconds: float, candidates: int, freed: int, now: float) -> None:
        """Learn from a collection that had ``candidates`` new objects to look at, whoever asked for it."""
        self._left_rss = None
        if self._has_generations and generation != Generation.FULL:
            promoted = generation == Generation.YOUNG
            self._pacer.young(seconds=seconds, candidates=candidates, freed=freed, now=now, promoted=promoted)
            return
        self._pacer.full(seconds=seconds, candidates=candidates, freed=freed, now=now)
        self._due_since = None
        self._live_rss = None
        if self._thawed:
            self._thaw_above = math.inf

    @property
    def was_long(self) -> bool:
        """Say whether the last full collection took longer than a request may be made to wait."""
        return self._pacer.full_seconds > self._settings.pause_ms / 1000

    @property
    def old_objects(self) -> int:
        """Return about how many objects the last full collection left that are not frozen."""
        return self._pacer.old

    def saw_memory(self, heap: Heap) -> None:
        """Take the first look at memory after a collection, and the lowest since, as what that left."""
        self._left_rss = heap.rss if self._left_rss is None else min(self._left_rss, heap.rss)
        self._live_rss = heap.rss if self._live_rss is None else min(self._live_rss, heap.rss)
        if self._thaw_above == math.inf:
            self._thaw_above = (heap.rss + heap.limit) / 2

    def froze(self) -> None:
        """Learn that what is alive will not be looked at again."""
        self._thawed = False
        self._pacer.froze()

    def thawed(self, objects: int) -> None:
        """Learn that so many frozen objects will be looked at again, and must be soon."""
        self._thawed = True
        self._pacer.thawed(objects)

    def _valve_growth(self, heap: Heap) -> float:
        growth = self._settings.valve_growth_mb * _MEBIBYTE
        room = max(heap.limit - (self._live_rss or 0), 0) if heap.limit else 2 * growth
        return min(growth, room / 2)

    def _growth(self, heap: Heap) -> float:
        """Return by how many times the growth that makes a full collection due was reached."""
        if self._live_rss is None:
            return 0.0
        worth = max(self._settings.full_growth_mb * _MEBIBYTE, _GROWTH_SHARE * self._live_rss)
        return (heap.rss - self._live_rss) / (worth * self._pacer.back_off)

    def _full_is_due(self, heap: Heap) -> bool:
        pacer, settings = self._pacer, self._settings
        survivors = pacer.survivors + (0 if self._has_generations else heap.new_objects)
        enough = survivors >= max(settings.full_objects, pacer.old / 4) * pacer.back_off
        stale = heap.now - pacer.full_at >= settings.full_interval_s * pacer.back_off
        loaded_late = self._is_idle_for_long(heap) and survivors + pacer.old >= _FREEZABLE_OBJECTS
        growth = self._growth(heap)
        wanted = enough or (stale and survivors + pacer.old > 0) or loaded_late or self._thawed or growth >= 1
        due = (wanted and heap.now >= pacer.full_from) or growth >= _FAST_GROWTH
        if not due:
            self._due_since = None
        elif self._due_since is None:
            self._due_since = heap.now
        return due

    def _is_idle_for_long(self, heap: Heap) -> bool:
        # Nothing at all in flight: what is frozen with a request would be garbage for ever.
        idle = not heap.in_flight and heap.quiet_s >= self._settings.refreeze_idle_s
        return idle and self._can_freeze

    def _is_moment_for_full(self, heap: Heap) -> bool:
        if self._growth(heap) >= _FAST_GROWTH:
            return True
        if not heap.is_quiet:
            return False
        short = self._pacer.predicted_full_seconds() <= self._settings.pause_ms / 1000
        quiet = heap.quiet_s >= self._settings.quiet_ms / 1000
        return short or quiet or self.deferred_s(heap.now) >= self._settings.max_deferral_s
