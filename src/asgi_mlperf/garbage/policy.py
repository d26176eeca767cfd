"""When to collect what: decisions from counts, clock and memory, without any effect.

The idea is Pitchfork's out-of-band collection (collect between requests, when nothing request-scoped
is alive, so that nothing is promoted too early) with the lessons of its predecessors: no collection
by request count, a budget for full passes, and a back-off when they free nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_MEBIBYTE = 1 << 20
_GROWTH_BYTES = 64 * _MEBIBYTE
_GROWTH_SHARE = 0.10
_WORTHWHILE_OBJECTS = 1_000
_LONGEST_BACK_OFF = 64


class GarbageSettings(BaseModel):
    """When the garbage collector may run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["scheduled", "freeze", "off"] = Field(
        default="scheduled",
        description="`scheduled`: between requests; `freeze`: only freeze at start-up; `off`: leave it alone",
    )
    young_objects: int = Field(
        default=2_000, ge=1, description="new objects that make an idle moment worth a young collection"
    )
    backstop_objects: int = Field(
        default=100_000, ge=1_000, description="new objects that force a young collection on a busy worker"
    )
    full_after: int = Field(default=25, ge=1, description="young collections before a full one is considered")
    full_share: float = Field(
        default=0.01, gt=0, le=1, description="share of wall time that full collections may take"
    )
    max_deferral_s: float = Field(
        default=120.0, gt=0, description="seconds a due full collection may be put off by busy traffic"
    )
    memory_share: float = Field(
        default=0.85,
        gt=0,
        le=1,
        description="share of the memory limit beyond which CPython's own full collections are re-armed",
    )


class Generation(IntEnum):
    """What to collect: everything young, or everything."""

    YOUNG = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Heap:
    """What a decision looks at: new objects, requests in flight, seconds, bytes (limit 0: none)."""

    new_objects: int
    in_flight: int
    now: float
    rss: int = 0
    memory_limit: int = 0


class Policy:
    """Decides from what it is shown and what past collections cost; touches nothing."""

    def __init__(self, settings: GarbageSettings, *, now: float, rss: int) -> None:
        """Begin right after a full collection at ``now`` (seconds) with ``rss`` bytes resident."""
        self._settings = settings
        self._full_at = now
        self._full_rss = rss
        self._full_seconds = 0.0
        self._young_since_full = 0
        self._back_off = 1
        self._due_since: float | None = None

    def choose(self, heap: Heap) -> Generation | None:
        """Say what to collect at the end of a request, or at an idle moment."""
        if self._full_is_due(heap) and (not heap.in_flight or self._deferred_too_long(heap.now)):
            return Generation.FULL
        if heap.new_objects >= self.young_limit(heap.in_flight):
            return Generation.YOUNG
        return None

    def young_limit(self, in_flight: int) -> int:
        """New objects from which a young collection is worth its pause with so many requests in flight."""
        return self._settings.backstop_objects if in_flight else self._settings.young_objects

    def needs_valve(self, heap: Heap) -> bool:
        """Say whether CPython must collect by itself, because nobody gets to ``choose`` in time."""
        if heap.memory_limit and heap.rss > self._settings.memory_share * heap.memory_limit:
            return True
        return self._full_is_due(heap) and self._deferred_too_long(heap.now, patience=2.0)

    def collected(self, generation: int, *, seconds: float, freed: int, now: float, rss: int) -> None:
        """Learn from a collection, whoever asked for it."""
        if generation == Generation.YOUNG:
            self._young_since_full += 1
        elif generation == Generation.FULL:
            idle = freed < _WORTHWHILE_OBJECTS
            self._back_off = min(self._back_off * 2, _LONGEST_BACK_OFF) if idle else 1
            self._full_seconds = seconds
            self._full_at, self._full_rss = now, rss
            self._young_since_full = 0
            self._due_since = None

    def _full_is_due(self, heap: Heap) -> bool:
        survivors = self._young_since_full >= self._settings.full_after * self._back_off
        grown = heap.rss > self._full_rss + max(_GROWTH_BYTES, _GROWTH_SHARE * self._full_rss)
        affordable = self._full_seconds <= self._settings.full_share * (heap.now - self._full_at)
        due = self._young_since_full > 0 and (survivors or grown) and affordable
        if not due:
            self._due_since = None
        elif self._due_since is None:
            self._due_since = heap.now
        return due

    def _deferred_too_long(self, now: float, *, patience: float = 1.0) -> bool:
        since = now if self._due_since is None else self._due_since
        return now - since >= patience * self._settings.max_deferral_s
