"""The state of the collector, and what the schedule makes of it, in words."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from asgi_mlperf.garbage.freezer import FROZEN_BY_INTERPRETER
from asgi_mlperf.garbage.kinds import CollectorKind, collector_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.garbage.settings import GarbageSettings

_MEBIBYTE = 1 << 20

_KINDS = {
    CollectorKind.GENERATIONAL: "generational: a young collection spares old objects",
    CollectorKind.INCREMENTAL: "incremental: each collection looks at new objects and at a part of the old",
    CollectorKind.WHOLE_HEAP: "free-threaded: every collection stops all threads and looks at everything",
}


def explained(settings: GarbageSettings, memory_limit: int | None) -> dict[str, Any]:
    """Say what this process was started with, and what a worker with ``settings`` will do."""
    kind = collector_kind()
    young, middle, old = gc.get_threshold()
    return {
        "collector": _KINDS[kind],
        "enabled": gc.isenabled(),
        "automatic collections": f"from {young} new objects on; thresholds {young}, {middle}, {old}",
        "frozen before the start": _frozen(gc.get_freeze_count()),
        **_mode(settings, kind, memory_limit),
    }


def advice(settings: GarbageSettings) -> Iterator[str]:
    """Yield what to change."""
    if not gc.isenabled():
        yield "gc is disabled here: collections between requests still run, the safety valve cannot"
    if settings.mode == "off":
        yield "ASGI_MLPERF_GC__MODE=off: full collections may stop requests; scheduled avoids that"
    if gc.get_freeze_count() > FROZEN_BY_INTERPRETER:
        yield "something froze the heap first: leave gc.freeze() to the plugin, it comes after the models"


def _frozen(objects: int) -> str:
    if not objects:
        return "nothing"
    if objects <= FROZEN_BY_INTERPRETER:
        return f"{objects} objects, the interpreter's own"
    return f"{objects} objects, by something else; left as they are"


def _mode(settings: GarbageSettings, kind: CollectorKind, memory_limit: int | None) -> dict[str, str]:
    if settings.mode == "off":
        return {"mode": "off: CPython collects inside requests, as in a stock app"}
    if settings.mode == "freeze":
        return {"mode": "freeze: what is loaded at start-up is never looked at; the rest as in a stock app"}
    young = f"between requests, from {settings.young_objects} new objects on"
    full = (
        f"at a quiet moment, after {settings.full_objects} survivors, {settings.full_growth_mb} MiB or "
        f"{settings.full_interval_s:g} s, at most {settings.full_share:.0%} of the time"
    )
    return {
        "mode": "scheduled: what is loaded at start-up is never looked at, the rest between requests",
        "young collections": young if kind.has_generations else "none: they would look at everything",
        "full collections": full,
        "safety valve": _valve(settings, memory_limit),
    }


def _valve(settings: GarbageSettings, memory_limit: int | None) -> str:
    bound = f"memory grows by {settings.valve_growth_mb} MiB"
    if memory_limit:
        bound += f" or half of what is free under {memory_limit // _MEBIBYTE} MiB"
    return f"CPython collects by itself while {bound}, or a full one waits {2 * settings.max_deferral_s:g} s"
