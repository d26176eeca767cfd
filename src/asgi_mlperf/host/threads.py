"""Native thread caps that hold in every Python thread, not only in the one that set them.

OpenMP's thread count is thread-local and torch passes its own on lazily, so a cap set in the main
thread misses the threads that run the models (pytorch#975, threadpoolctl#208). Here the cap is set
inside each thread when the thread starts, and again when a library was loaded since.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyio._backends import _asyncio as anyio_asyncio
from pydantic import BaseModel, ConfigDict, Field
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("asgi_mlperf")


class ThreadSettings(BaseModel):
    """Native threads and CPU placement of one worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="cap native threads at all")
    native: int | None = Field(
        default=None,
        ge=1,
        description="native threads an op may use; default: CPU budget ÷ inference threads",
    )
    interop: int = Field(default=1, ge=1, description="torch inter-op threads")
    cpus: float | None = Field(
        default=None, gt=0, description="CPUs of all workers together; default: affinity and cgroup quota"
    )
    pin: bool = Field(default=False, description="give each worker CPUs of its own (Linux)")


class NativeThreadCaps:
    """Caps of ``limit`` native threads per op, for every thread that calls ``apply``."""

    def __init__(self, limit: int, interop: int) -> None:
        """Prepare; nothing changes before ``apply``."""
        self.limit = limit
        self._interop = interop
        self._local = threading.local()
        self._lock = threading.Lock()
        self._controller: ThreadpoolController | None = None
        self._modules_seen = -1
        self._found: dict[str, int] = {}
        self._torch_found: int | None = None

    def apply(self) -> None:
        """Cap the calling thread. Free when nothing was imported since the last call in this thread."""
        modules = len(sys.modules)
        if getattr(self._local, "modules", -1) == modules:
            return
        self._local.modules = modules
        for library in self._libraries(modules):
            library.set_num_threads(self.limit)
        if torch := sys.modules.get("torch"):
            self._cap_torch(torch)

    def restore(self) -> None:
        """Give the calling thread, and what is process-wide, the counts found before the first cap."""
        for library in ThreadpoolController().lib_controllers:
            if library.filepath in self._found:
                library.set_num_threads(self._found[library.filepath])
        if self._torch_found is not None:
            sys.modules["torch"].set_num_threads(self._torch_found)

    def report(self) -> dict[str, int]:
        """Return the native thread count of each loaded library as the calling thread sees it."""
        counts = {
            library.prefix or library.internal_api: int(library.num_threads)
            for library in ThreadpoolController().lib_controllers
        }
        if (torch := sys.modules.get("torch")) and hasattr(torch, "get_num_threads"):
            counts["torch"] = int(torch.get_num_threads())
        return counts

    def _libraries(self, modules: int) -> list[Any]:
        with self._lock:
            if self._controller is None or self._modules_seen != modules:
                self._controller = ThreadpoolController()
                self._modules_seen = modules
                for library in self._controller.lib_controllers:
                    self._found.setdefault(library.filepath, library.num_threads)
            return list(self._controller.lib_controllers)

    def _cap_torch(self, torch: Any) -> None:
        if not hasattr(torch, "set_num_interop_threads"):
            return  # half imported in another thread; the next apply sees the rest
        with self._lock:
            first = self._torch_found is None
            if first:
                self._torch_found = torch.get_num_threads()
        torch.set_num_threads(self.limit)
        if first:
            try:
                torch.set_num_interop_threads(self._interop)
            except RuntimeError:
                log.debug("torch inter-op threads were already set or used; left as they are")


@contextmanager
def capping_new_threads(apply: Callable[[], None]) -> Iterator[None]:
    """Call ``apply`` at the start of every Python thread that starts inside this block.

    Wraps ``run`` of ``threading.Thread`` and of AnyIO's worker thread, which offers no hook of its own
    (anyio#361); both are put back on exit, unless something else wrapped them since: then ours stays
    below it and does nothing.
    """
    active = True
    undo: list[Callable[[], None]] = []

    def wrap(owner: Any) -> None:
        original = owner.run

        def run(thread: threading.Thread) -> None:
            if active:
                try:
                    apply()
                except Exception:
                    log.exception("native threads of %s could not be capped", thread.name)
            original(thread)

        def put_back() -> None:
            if owner.run is run:
                owner.run = original

        owner.run = run
        undo.append(put_back)

    wrap(threading.Thread)
    worker = getattr(anyio_asyncio, "WorkerThread", None)
    if worker is not None and "run" in vars(worker):
        wrap(worker)
    try:
        yield
    finally:
        active = False
        for put_back in reversed(undo):
            put_back()
