"""Threads that ran before the caps and that nothing tells of: they are named, since nothing reaches them.

A native library keeps its count in the thread that runs the op, and only that thread can change it.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import FrameType

_TOLD_OF = frozenset({"concurrent.futures.thread", "anyio._backends._asyncio"})
_RUN_NO_MODELS = frozenset({"asgi_mlperf", "granian", "gunicorn", "hypercorn", "logging", "uvicorn"})


def early_threads() -> tuple[str, ...]:
    """Return the Python threads of now that would run an op uncapped, each with the function that it runs.

    Those of executors and of AnyIO are capped with their next task, the main thread and the calling one
    otherwise; the servers' own run no models.
    """
    frames = sys._current_frames()  # noqa: SLF001 - documented in the standard library
    told = {threading.main_thread(), threading.current_thread()}
    found = (
        (thread.name, _target(frames.get(thread.ident or 0)))
        for thread in threading.enumerate()
        if thread not in told
    )
    return tuple(
        f"{name} ({module}.{function})"
        for name, (module, function) in found
        if module not in _TOLD_OF and module.partition(".")[0] not in _RUN_NO_MODELS
    )


def complaint(early: Iterable[str], counts: Mapping[str, int], allowed: int) -> str:
    """Say which threads the caps miss, what an op may use in them, and what to do."""
    widest = max(counts, key=lambda library: counts[library])
    return (
        f"threads that ran before the plugin are not capped: {', '.join(early)}. An op in one may use "
        f"{counts[widest]} native threads ({widest}) where this worker has {allowed}. If one runs models, "
        f"start it in the app's lifespan, or set OMP_NUM_THREADS={allowed} before the server starts, as "
        "asgi-mlperf run does"
    )


def _target(frame: FrameType | None) -> tuple[str, str]:
    """Return module and name of the function that a thread was started for."""
    target = ("threading", "Thread")
    while frame is not None:  # from the innermost call to the outermost
        module = frame.f_globals.get("__name__", "")
        if module != "threading":
            target = (module, frame.f_code.co_qualname)
        frame = frame.f_back
    return target
