"""Libraries with native threads that count per thread or per process, and cost nothing."""

from __future__ import annotations

import threading

from asgi_mlperf.host.libraries import Library


class FakeLibrary:
    """Stands for OpenMP or torch (``per_thread``), or OpenBLAS; ``found`` is what a new thread has."""

    def __init__(self, name: str, found: int, *, per_thread: bool) -> None:
        self._of_thread = threading.local()
        self._of_process = found
        self.sets: list[int] = []
        self.library = Library(name, name, found, per_thread, self.get, self.set)

    def get(self) -> int:
        if self.library.per_thread:
            return int(getattr(self._of_thread, "count", self.library.found))
        return self._of_process

    def set(self, count: int) -> None:
        self.sets.append(count)
        self._of_thread.count = self._of_process = count


def in_new_thread(func, *args):
    """Return what ``func`` returns in a thread that has run nothing yet."""
    results = []
    thread = threading.Thread(target=lambda: results.append(func(*args)))
    thread.start()
    thread.join()
    return results[0]
