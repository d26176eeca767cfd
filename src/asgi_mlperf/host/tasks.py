"""Tells when a Python thread starts, and when one begins and ends a task, whoever started it.

Neither AnyIO (anyio#361) nor ``concurrent.futures`` has a hook for this, so three functions are wrapped:
``threading.Thread.start``, the call that hands work to AnyIO's worker threads, and the one that runs an
executor's work item. Each is put back on exit; where something else wrapped it since, ours stays below
and does nothing. Where a function is missing, its threads are only told of when they start.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import thread as executors
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Protocol

from anyio._backends import _asyncio as anyio_asyncio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("asgi_mlperf")

_OWN = f"{__name__.partition('.')[0]}."


class Watcher(Protocol):
    """What is told, in the thread in question; it must be quick."""

    def cap_new(self) -> None:
        """A thread has started."""

    def begin(self) -> None:
        """A task begins in this thread."""

    def end(self) -> None:
        """The task has ended."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` of every thread and task that starts inside this block; its errors are logged."""

    def run(original: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        try:
            watcher.begin()
        except Exception:
            log.exception("native threads of a task could not be capped")
        try:
            return original(*args, **options)
        finally:
            watcher.end()

    def start_thread(original: Callable[..., Any], thread: threading.Thread) -> Any:
        own = thread.run
        thread.run = partial(_run_thread, watcher, thread, own)  # type: ignore[method-assign] # one thread's own
        try:
            return original(thread)
        except BaseException:
            vars(thread).pop("run", None)
            raise

    def hand_over(original: Any, backend: Any, func: Any, args: Any, *rest: Any, **options: Any) -> Any:
        if not (getattr(func, "__module__", None) or "").startswith(_OWN):  # ours tell themselves
            func, args = run, (func, *args)
        return original.__get__(None, backend)(func, args, *rest, **options)

    with ExitStack() as stack:
        for owner, name, replacement in (
            (threading.Thread, "start", start_thread),
            (getattr(executors, "_WorkItem", None), "run", run),
            (getattr(anyio_asyncio, "AsyncIOBackend", None), "run_sync_in_worker_thread", hand_over),
        ):
            stack.enter_context(_wrapped(owner, name, replacement))
        yield


def _run_thread(watcher: Watcher, thread: threading.Thread, own: Callable[[], None]) -> None:
    vars(thread).pop("run", None)
    try:
        watcher.cap_new()
    except Exception:
        log.exception("native threads of %s could not be capped", thread.name)
    own()


@contextmanager
def _wrapped(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Let ``replacement(original, *args)`` stand for ``owner.name`` inside this block."""
    original = vars(owner).get(name) if owner is not None else None
    if original is None:
        log.info("%s is not as asgi-mlperf knows it: its threads are capped when they start", name)
        yield
        return
    active = True
    plain = original.__func__ if isinstance(original, classmethod) else original

    @wraps(plain)
    def wrapper(*args: Any, **options: Any) -> Any:
        return replacement(original, *args, **options) if active else plain(*args, **options)

    placed = classmethod(wrapper) if isinstance(original, classmethod) else wrapper
    setattr(owner, name, placed)
    try:
        yield
    finally:
        active = False
        if vars(owner)[name] is placed:
            setattr(owner, name, original)
