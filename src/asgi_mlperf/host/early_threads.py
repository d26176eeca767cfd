"""Threads that ran before the caps and that nothing tells of: they are named, since nothing reaches them.

A native library keeps its count in the thread that runs the op, and only that thread can change it.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

_TOLD_OF = frozenset({"concurrent.futures.thread", "anyio._backends._asyncio"})
_RUN_NO_MODELS = frozenset(
    {
        "asgi_mlperf",
        "concurrent",
        "debugpy",
        "execnet",
        "granian",
        "gunicorn",
        "hypercorn",
        "logging",
        "multiprocessing",
        "opentelemetry",
        "prometheus_client",
        "pydevd",
        "sentry_sdk",
        "socketserver",
        "tqdm",
        "uvicorn",
        "watchdog",
        "watchfiles",
    }
)
_MOST_NAMED = 5
_MOST_LETTERS = 60


def early_threads() -> tuple[str, ...]:
    """Return the Python threads of now that would run an op uncapped, each with the function that it runs.

    Those of executors and of AnyIO are capped with their next task, the main thread and the calling one
    otherwise; the servers' own run no models.
    """
    frames = sys._current_frames()  # noqa: SLF001 - documented in the standard library
    told = {threading.main_thread(), threading.current_thread()}
    calls = (
        (thread.name, _calls(frames.get(thread.ident or 0)))
        for thread in threading.enumerate()
        if thread not in told
    )
    return tuple(
        f"{ascii(name)[1:-1][:_MOST_LETTERS]} ({'.'.join(found[-1])})"
        for name, found in calls
        if not any(module in _TOLD_OF for module, _ in found)
        and found[-1][0].partition(".")[0] not in _RUN_NO_MODELS
    )


def complaint(early: Sequence[str], counts: Mapping[str, int], allowed: int) -> str:
    """Say which threads the caps miss, what an op may use in them, and what to do."""
    widest = max(counts, key=lambda library: counts[library])
    more = f" and {len(early) - _MOST_NAMED} more" if len(early) > _MOST_NAMED else ""
    named = ", ".join(early[:_MOST_NAMED]) + more
    return (
        f"threads that ran before the plugin are not capped: {named}. An op in one may use "
        f"{counts[widest]} native threads ({widest}) where this worker has {allowed}. If one runs models, "
        f"start it in the app's lifespan, or set OMP_NUM_THREADS={allowed} before the server starts, as "
        "asgi-mlperf run does"
    )


def _calls(frame: FrameType | None) -> list[tuple[str, str]]:
    """Return module and name of each function that a thread is in; the last is what it was started for."""
    calls = [("threading", "Thread")]
    while frame is not None:  # from the innermost call to the outermost
        module = frame.f_globals.get("__name__", "")
        if module != "threading":
            calls.append((module, frame.f_code.co_qualname))
        frame = frame.f_back
    return calls
