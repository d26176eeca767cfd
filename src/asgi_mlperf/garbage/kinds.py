"""Which collector this interpreter has, found out by what it does: vendors patch, versions mislead."""

from __future__ import annotations

import gc
import weakref
from enum import StrEnum
from typing import Protocol

_PROBE = 7


class CollectorKind(StrEnum):
    """How a collector goes about the old generation."""

    GENERATIONAL = "generational"
    INCREMENTAL = "incremental"
    WHOLE_HEAP = "whole heap"

    @property
    def has_generations(self) -> bool:
        """Say whether a young collection spares old objects; if not, each one is a full one."""
        return self is not CollectorKind.WHOLE_HEAP


class _GC(Protocol):
    def collect(self, generation: int = 2) -> int: ...
    def get_threshold(self) -> tuple[int, int, int]: ...
    def set_threshold(self, threshold0: int, threshold1: int = ..., threshold2: int = ..., /) -> None: ...


class _Cycle:
    me: _Cycle


def collector_kind(collector: _GC = gc) -> CollectorKind:
    """Find out the kind of ``collector``; costs a young collection.

    The free-threaded builds have one that looks at the whole heap every time. The incremental one of
    CPython 3.14.0 to 3.14.4 does not keep the oldest generation's threshold.
    """
    if _young_collection_reaches_old_objects(collector):
        return CollectorKind.WHOLE_HEAP
    if _keeps_oldest_threshold(collector):
        return CollectorKind.GENERATIONAL
    return CollectorKind.INCREMENTAL


def _young_collection_reaches_old_objects(collector: _GC) -> bool:
    cycle = _Cycle()
    cycle.me = cycle
    alive = weakref.ref(cycle)
    collector.collect(1)
    del cycle
    collector.collect(0)
    return alive() is None


def _keeps_oldest_threshold(collector: _GC) -> bool:
    young, middle, old = found = collector.get_threshold()
    collector.set_threshold(young, middle, old + _PROBE)
    kept = collector.get_threshold()[2] == old + _PROBE
    collector.set_threshold(*found)
    return kept
