"""Tells when a Python thread starts, and when one begins and ends a task, whoever started it.

Neither AnyIO (anyio#361) nor ``concurrent.futures`` has a hook for this, so four functions are wrapped:
``threading.Thread.start``, ``_thread.start_new_thread``, the call that hands work to AnyIO's worker threads,
and the one that runs an executor's work item. Each is put back on exit, unless something else wrapped it
since: then ours stays below, and tells a watcher that has ended. Where a function is missing, its threads are
only told of when they start.
"""

from __future__ import annotations

import _thread
import logging
import threading
from concurrent.futures import thread as executors
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Protocol

from anyio._backends import _asyncio as anyio_asyncio

from asgi_mlperf.host.handover import quicken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("asgi_mlperf")

_OWN = f"{__name__.partition('.')[0]}."


class Watcher(Protocol):
    """What is told, in the thread in question; it must be quick."""

    def cap_new(self) -> None:
        """A thread has started."""

    def call(self, func: Callable[..., Any], /, *args: Any) -> Any:
        """Return ``func(*args)``, a task of this thread; whatever else fails must not fail the task."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` of every thread and task that starts inside this block; its errors are logged."""
    anyio_backend = getattr(anyio_asyncio, "AsyncIOBackend", None)
    with (
        _wrapped(threading.Thread, "start", partial(_telling_of_threads, watcher)),
        _wrapped(_thread, "start_new_thread", partial(_telling_of_raw_threads, watcher)),
        _wrapped(getattr(executors, "_WorkItem", None), "run", partial(_telling_of_tasks, watcher)),
        _wrapped(anyio_backend, "run_sync_in_worker_thread", partial(_telling_of_functions, watcher)),
    ):
        yield


def _telling_of_tasks(watcher: Watcher, run: Callable[..., Any]) -> Callable[..., Any]:
    call = watcher.call

    @wraps(run)
    def run_told(*args: Any) -> Any:
        return call(run, *args)

    return run_told


def _telling_of_functions(watcher: Watcher, hand_over: Callable[..., Any]) -> Callable[..., Any]:
    call = watcher.call

    @wraps(hand_over)
    def hand_over_told(backend: Any, func: Any, args: Any, *rest: Any, **options: Any) -> Any:
        if not (getattr(func, "__module__", None) or "").startswith(_OWN):  # ours tell themselves
            func, args = call, (func, *args)
        return hand_over(backend, func, args, *rest, **options)

    return hand_over_told


def _telling_of_threads(watcher: Watcher, start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(start)
    def start_told(thread: threading.Thread) -> Any:
        quicken(thread)
        thread.run = partial(_run_thread, watcher, thread, thread.run)  # type: ignore[method-assign] # one thread's own
        try:
            return start(thread)
        except BaseException:
            vars(thread).pop("run", None)
            raise

    return start_told


def _run_thread(watcher: Watcher, thread: threading.Thread, own: Callable[[], None]) -> None:
    vars(thread).pop("run", None)
    _cap_new(watcher, thread.name)
    own()


def _telling_of_raw_threads(watcher: Watcher, start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(start)
    def start_told(function: Any, *rest: Any) -> Any:
        return start(partial(_run_raw, watcher, function) if callable(function) else function, *rest)

    return start_told


def _run_raw(watcher: Watcher, own: Callable[..., object], /, *args: Any, **options: Any) -> None:
    _cap_new(watcher, "a thread")
    own(*args, **options)


def _cap_new(watcher: Watcher, name: str) -> None:
    try:
        watcher.cap_new()
    except Exception:
        log.exception("native threads of %s could not be capped", name)


@contextmanager
def _wrapped(
    owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Let ``wrap(owner.name)`` stand for ``owner.name`` inside this block."""
    found = vars(owner).get(name) if owner is not None else None
    if found is None:
        log.info("%s is not as asgi-mlperf knows it: its threads are capped when they start", name)
        yield
        return
    is_classmethod = isinstance(found, classmethod)
    wrapper = wrap(found.__func__ if is_classmethod else found)
    placed = classmethod(wrapper) if is_classmethod else wrapper
    setattr(owner, name, placed)
    try:
        yield
    finally:
        if vars(owner)[name] is placed:
            setattr(owner, name, found)
