"""CPUs of its own for each worker of a host, claimed so that a crash frees them."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def cpus_of_slot(cpus: list[int], slot: int, workers: int) -> list[int]:
    """Return the contiguous share of ``cpus`` that worker ``slot`` of ``workers`` gets, never empty."""
    share = max(1, len(cpus) // workers)
    first = (slot * share) % len(cpus)
    return cpus[first : first + share]


@contextmanager
def worker_slot(workers: int, directory: Path | None = None) -> Iterator[int | None]:
    """Claim the lowest free worker slot among siblings of one supervisor; None when all are taken.

    The claim is a lock on a file, so the kernel frees it when the process ends, however it ends.
    """
    directory = directory or Path(tempfile.gettempdir()) / f"asgi-mlperf-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    for slot in range(workers):
        handle = os.open(directory / f"{os.getppid()}-{slot}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        try:
            yield slot
        finally:
            os.close(handle)
        return
    yield None


@contextmanager
def pinned(cpus: list[int]) -> Iterator[None]:
    """Keep every thread of this process, and those it starts, on ``cpus``; put back on exit."""
    before = os.sched_getaffinity(0)
    _pin_all(set(cpus))
    try:
        yield
    finally:
        _pin_all(before)


def _pin_all(cpus: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cpus)
        except ProcessLookupError:
            continue
