"""A quicker way for a function into one of AnyIO's worker threads.

Such a thread waits for its next function in a ``queue.Queue``: one lock and three conditions in Python, for
each of which the event loop and the thread may have to wait for the GIL. A ``SimpleQueue`` does it in C.
"""

from __future__ import annotations

from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, Any

from anyio._backends import _asyncio as anyio_asyncio

if TYPE_CHECKING:
    import threading


class Handover(SimpleQueue[Any]):
    """A queue in C of which nobody waits until all is done."""

    def task_done(self) -> None:
        """Count nothing."""


def quicken(thread: threading.Thread) -> None:
    """Let ``thread``, which has not started, wait in C if it is one of AnyIO's that waits as known."""
    if type(thread) is _WORKER and type(getattr(thread, "queue", None)) is Queue:
        vars(thread)["queue"] = Handover()


def _known_worker() -> type | None:
    """Return AnyIO's class of worker threads, if what hands over needs no more than ``Handover`` has."""
    worker: type | None = getattr(anyio_asyncio, "WorkerThread", None)
    giver = getattr(getattr(anyio_asyncio, "AsyncIOBackend", None), "run_sync_in_worker_thread", None)
    if worker is None or giver is None:
        return None
    public = {name for name in dir(Queue()) if not name.startswith("_")}
    missing = public - {*dir(Handover), "queue"}  # the last is what a worker calls the whole as well
    for function in (giver, *vars(worker).values()):
        code = getattr(function, "__code__", None)
        if code is not None and missing.intersection(code.co_names):
            return None
    return worker


_WORKER = _known_worker()
