"""Native thread caps that hold in every Python thread, not only in the one that set them.

OpenMP's thread count is thread-local and torch passes its own on lazily, so a cap set in the main
thread misses the threads that run the models (pytorch#975, threadpoolctl#208). Here the cap is set
inside each thread, when it starts and whenever it begins a task.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any

from asgi_mlperf.host import libraries

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadpoolctl import ThreadpoolController

    from asgi_mlperf.host.libraries import Library
    from asgi_mlperf.host.widths import Plan, Widths

log = logging.getLogger("asgi_mlperf")

_LOOK_AGAIN_S = 1.0
_IMPORTED_IN = os.getpid()


class _OfThread(threading.local):
    """What was last set in the calling thread."""

    plan: Plan | None = None
    torch: int | None = None
    torch_is_the_apps = False


class NativeThreadCaps:
    """Keeps the native threads of every Python thread that tells of itself within ``widths``.

    ``begin`` and ``end`` stand around a task, in the thread that runs it, and ``call`` runs one;
    ``begin_on_loop`` stands before each request, on the event loop; ``cap_new`` at a thread's start,
    ``cap_early`` in one from before. No cap raises a count above what was found. A count that the app sets
    itself with ``torch.set_num_threads`` is reported once, stays where it was set, and holds in every other
    thread from then on.
    """

    def __init__(
        self,
        widths: Widths,
        *,
        interop: int,
        place_new: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing changes before the first cap.

        ``place_new`` is called in every new thread, to move it to its CPUs. ``clock`` is in seconds.
        """
        self.widths = widths
        self._interop = interop
        self._place_new = place_new
        self._clock = clock
        self._of_thread = _OfThread()
        self._running: set[int] = set()
        self._lock = threading.Lock()
        self._libraries: dict[str, Library] = {}
        self._per_thread: tuple[Library, ...] = ()
        self._per_process: tuple[Library, ...] = ()
        self._torch: Library | None = None
        self._torch_by_app: int | None = None
        self._torch_count: Callable[[], int | None] = _none
        self._modules = -1
        self._looked_at = -_LOOK_AGAIN_S
        self._process_width = 0
        self._loop_is_settled = False
        self._loop_torch: int | None = None
        self._loop_is_forked = False
        self._plans = widths.plans()
        self._most = len(self._plans) - 1
        self._is_shared = len(set(self._plans)) > 1

    def begin(self) -> None:
        """Cap the calling thread for a task."""
        if self._is_shared:
            self._running.add(get_ident())
            self._loop_is_settled = False
        running = len(self._running)
        plan = self._plans[min(running, self._most)]
        if (
            self._of_thread.plan is not plan
            or self._process_width != plan.process
            or len(sys.modules) != self._modules
        ):
            self._apply(running)

    def end(self) -> None:
        """Take back what ``begin`` gave, and notice if the task set torch's count itself."""
        if self._is_shared:
            self._running.discard(get_ident())
            self._loop_is_settled = False
        if self._torch_count() != self._of_thread.torch:
            self._heed_app()

    def call(self, func: Callable[..., Any], /, *args: Any) -> Any:
        """Return ``func(*args)``, called as a task; that it could not be capped is logged.

        Where each task has the same width, ``begin`` and ``end`` are left out unless something changed, and
        nobody counts how many run.
        """
        mine = self._of_thread
        plan = mine.plan
        if (
            self._is_shared
            or plan is not self._plans[0]
            or self._process_width != plan.process
            or len(sys.modules) != self._modules
        ):
            try:
                self.begin()
            except Exception:
                log.exception("native threads of a task could not be capped")
        try:
            return func(*args)
        finally:
            if self._is_shared or self._torch_count() != mine.torch:
                self.end()

    def begin_on_loop(self) -> None:
        """Cap the event loop's thread as if it were one more task; there is one such thread."""
        if (
            not self._loop_is_settled
            or len(sys.modules) != self._modules
            or (self._torch is not None and self._torch_count() != self._loop_torch)
        ):
            self._settle_loop()

    def _settle_loop(self) -> None:
        self._loop_is_settled = True  # first: a task that begins or ends meanwhile takes it back
        if self._torch_count() != self._of_thread.torch:
            self._heed_app()
        self._apply(len(self._running) + 1, on_loop=True)
        self._loop_torch = self._of_thread.torch

    def cap_new(self) -> None:
        """Cap the calling thread, which has just started, to its share, and place it."""
        if self._place_new is not None:
            self._place_new()
        self._cap_thread(self._plans[-1], self.widths.share)

    def cap_early(self) -> None:
        """Cap the calling thread, which ran before, to its share, and place it; its lower counts stay."""
        before = [(library, library.get()) for library in self._per_thread]
        self.cap_new()
        for library, count in before:
            if count < library.get():
                library.set(count)
                if library is self._torch:
                    self._of_thread.torch = count

    def rest(self) -> None:
        """End the native threads that wait for the calling thread, which has had no task for long.

        While more of them wait than there are CPUs, libgomp has all of them sleep between an op's parts.
        """
        for library in self._per_thread:
            if library.rest is not None:
                library.rest()
        self._of_thread.plan = None  # the count may be gone with them

    @property
    def thread_width(self) -> int:
        """What the calling thread was last capped to; 0 if it never was."""
        return self._of_thread.plan.thread if self._of_thread.plan else 0

    def refresh(self, looked_up: ThreadpoolController | None = None) -> None:
        """Take in libraries that were loaded since; without what was ``looked_up``, it takes milliseconds."""
        with self._lock:
            if self._looked_at == math.inf:
                return
            self._looked_at = self._clock()
            self._modules = len(sys.modules)
            known = self._libraries
            found = {new.key: known.get(new.key, new) for new in libraries.loaded(looked_up)}
            if found.keys() == known.keys():
                return
            self._libraries = found
            self._per_thread = tuple(library for library in found.values() if library.per_thread)
            self._per_process = tuple(library for library in found.values() if not library.per_thread)
            if not known:
                self._mind_fork()
            self._process_width = 0
            self._plans = self.widths.plans()
            self._loop_is_settled = False
            if self._torch is None and "torch" in found:
                self._torch = found["torch"]
                self._torch_count = self._torch.get
                libraries.set_interop(self._interop)

    def restore(self) -> None:
        """Give the calling thread, and what is process-wide, the counts found before; cap nothing more."""
        for library in self._libraries.values():
            if library is not self._torch or self._torch_by_app is None:
                library.set(library.found)
        self._per_thread = self._per_process = ()
        self._looked_at = math.inf

    def report(self) -> dict[str, int]:
        """Return how many threads an op of each known library may use in the calling thread."""
        counts: dict[str, int] = {}
        for library in self._per_thread + self._per_process:
            counts[library.name] = max(counts.get(library.name, 0), library.get())
        return counts

    def out_of_reach(self, allowed: int) -> dict[str, int]:
        """Return the counts above ``allowed`` that hold in threads which tell nothing of themselves."""
        return {each.name: each.found for each in self._per_thread if each.found > allowed}

    def _mind_fork(self) -> None:
        """Keep a forked event loop off OpenMP teams: libgomp waits for threads that the fork left behind."""
        self._loop_is_forked = os.getpid() != _IMPORTED_IN and bool(self._per_thread)
        if self._loop_is_forked and self.widths.alone > 1:
            log.warning(
                "this worker was forked with OpenMP loaded (gunicorn --preload), so ops on the event loop "
                "use one native thread: call models with plugin.run, or start without --preload"
            )

    def _apply(self, running: int, *, on_loop: bool = False) -> None:
        if len(sys.modules) != self._modules and self._clock() - self._looked_at >= _LOOK_AGAIN_S:
            if on_loop:  # a request must not wait; what was exported caps a library's first ops
                self._looked_at = self._clock()
                threading.Thread(target=self.refresh, name="asgi-mlperf-caps", daemon=True).start()
            else:
                self.refresh()
        plan = self._plans[min(running, self._most)]
        if self._of_thread.plan is not plan:
            self._cap_thread(plan, at_most=1 if on_loop and self._loop_is_forked else plan.thread)
        if self._process_width != plan.process:
            self._cap_process(plan.process)

    def _cap_thread(self, plan: Plan, at_most: int) -> None:
        self._of_thread.plan = plan
        for library in self._per_thread:
            if library is self._torch:
                self._cap_torch(library, at_most)
            else:
                library.set(min(at_most, library.found))

    def _cap_torch(self, torch: Library, width: int) -> None:
        mine = self._of_thread
        if not mine.torch_is_the_apps:
            torch.get()  # a thread's first call adopts another thread's count: before ours, not after
            mine.torch = self._torch_by_app or min(width, torch.found)
            torch.set(mine.torch)

    def _cap_process(self, width: int) -> None:
        with self._lock:
            self._process_width = width
            self._loop_is_settled = False
            for library in self._per_process:
                library.set(min(width, library.found))

    def _heed_app(self) -> None:
        mine, chosen = self._of_thread, self._torch_count()
        if mine.torch is None or chosen is None:
            return
        if self._torch_by_app is None:
            log.warning(
                "the app set torch's threads to %d while running (torch.set_num_threads); all threads use "
                "that from now on. ASGI_MLPERF_THREADS__NATIVE sets it from the start",
                chosen,
            )
        mine.torch, mine.torch_is_the_apps = chosen, True
        self._torch_by_app = chosen
        self._plans = self.widths.plans()
        self._loop_is_settled = False


def _none() -> None:
    return None
