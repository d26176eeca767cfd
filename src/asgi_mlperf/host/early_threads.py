"""Threads that ran before the caps and that nothing tells of: capped before their next step of Python.

A native library keeps its count in the thread that runs the op, and only that thread can change it.
"""

from __future__ import annotations

import builtins
import logging
import sys
import threading
from contextlib import contextmanager, nullcontext
from threading import get_ident
from traceback import format_exc
from typing import TYPE_CHECKING

from asgi_mlperf.frames import current_frames
from asgi_mlperf.host import next_steps, thread_states

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

    from asgi_mlperf.host.threads import NativeThreadCaps

log = logging.getLogger("asgi_mlperf")

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
_RUN_MODELS = frozenset({("multiprocessing.pool", "worker")})  # of a ThreadPool
_MOST_NAMED = 5
_MOST_LETTERS = 60


@contextmanager
def early_threads_capped(caps: NativeThreadCaps) -> Iterator[None]:
    """Cap, inside this block, each early thread before its next step; name those that may run ops uncapped.

    Threads that have no next step inside it are left as they were. ``caps`` must be told of new ones already.
    """
    failures: list[str] = []

    def cap() -> None:
        try:
            caps.cap_early()
        except Exception:  # noqa: BLE001 - logged below: the thread may hold a lock of the log's
            failures.append(format_exc())

    early = early_threads() if caps.out_of_reach(caps.widths.share) else {}
    with _before_next_step(early, cap) as missed:
        named = [name for thread, name in early.items() if name and thread in missed]
        if named and (counts := caps.out_of_reach(caps.widths.alone)):
            log.warning("%s", complaint(named, counts, caps.widths.alone))
        try:
            yield
        finally:
            for failure in failures:
                log.error("native threads of a thread from before could not be capped\n%s", failure)


def early_threads() -> dict[int, str]:
    """Return the Python threads of now that would run an op uncapped, with a name and what each runs.

    Those of executors and of AnyIO have it from their next task, so only those in a task are here, and their
    name is empty. The main thread and the calling one are capped otherwise; the servers' own run no models.
    """
    ours = vars(builtins)  # each interpreter of a process has its own
    everyones = current_frames()
    frames = {thread: frame for thread, frame in everyones.items() if frame.f_builtins is ours}
    names = {thread.ident: thread.name for thread in threading.enumerate() if thread.ident is not None}
    told = {threading.main_thread().ident, get_ident()}
    found = {
        thread: _calls(frames.get(thread)) for thread in names.keys() | frames.keys() if thread not in told
    }
    return {
        thread: _name(names.get(thread, "_thread"), calls)
        for thread, calls in found.items()
        if _may_run_ops(calls)
    }


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


def _before_next_step(
    threads: Collection[int], call: Callable[[], None]
) -> AbstractContextManager[Collection[int]]:
    """Choose the way of this interpreter; without the GIL none was tried."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return nullcontext(threads)
    if hasattr(sys, "monitoring"):
        return next_steps.before_next_step(threads, call)
    return thread_states.before_next_step(threads, call)


def _may_run_ops(calls: Sequence[tuple[str, str]]) -> bool:
    innermost = next((module for module, _ in calls if module != "queue"), None)
    if _is_told_of(calls):
        return innermost not in _TOLD_OF  # else it waits for its next task
    return calls[-1] in _RUN_MODELS or calls[-1][0].partition(".")[0] not in _RUN_NO_MODELS


def _name(thread: str, calls: Sequence[tuple[str, str]]) -> str:
    return "" if _is_told_of(calls) else f"{ascii(thread)[1:-1][:_MOST_LETTERS]} ({'.'.join(calls[-1])})"


def _is_told_of(calls: Sequence[tuple[str, str]]) -> bool:
    return any(module in _TOLD_OF for module, _ in calls)


def _calls(frame: FrameType | None) -> list[tuple[str, str]]:
    """Return module and name of each function that a thread is in; the last is what it was started for."""
    calls: list[tuple[str, str]] = []
    while frame is not None:  # from the innermost call to the outermost
        module = str(frame.f_globals.get("__name__", ""))
        if module != "threading":
            calls.append((module, frame.f_code.co_qualname))
        frame = frame.f_back
    return calls or [("threading", "Thread")]
