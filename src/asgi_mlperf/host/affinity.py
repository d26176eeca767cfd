"""Physical cores of its own for each worker of a host, claimed so that a crash frees them."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Placement(NamedTuple):
    """The CPUs of the event loop's thread and of all other threads of a worker; they may be the same."""

    loop: frozenset[int]
    others: frozenset[int]

    def place_new(self) -> None:
        """Move the calling thread, which inherited the CPUs of the one that started it, to the others'."""
        os.sched_setaffinity(0, self.others)


def placement(cores: list[list[int]], slot: int, workers: int, *, loop_core: bool) -> Placement:
    """Return the contiguous share of ``cores`` that worker ``slot`` of ``workers`` gets, never empty.

    With more workers than cores, several share one. ``loop_core`` keeps the first core of a share for the
    event loop, unless it is the only one.
    """
    count = len(cores)
    first = slot * count // workers
    share = cores[first : max(first + 1, (slot + 1) * count // workers)]
    cpus = _joined(share)
    return (
        Placement(_joined(share[:1]), _joined(share[1:]))
        if loop_core and share[1:]
        else Placement(cpus, cpus)
    )


def _joined(cores: Iterable[list[int]]) -> frozenset[int]:
    return frozenset(cpu for core in cores for cpu in core)


@contextmanager
def worker_slot(workers: int, directory: Path | None = None) -> Iterator[int | None]:
    """Claim the lowest free worker slot among siblings of one supervisor; None when all are taken.

    The claim is a lock on a file, so the kernel frees it when the process ends, however it ends.
    """
    directory = directory or Path(tempfile.gettempdir()) / f"asgi-mlperf-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    _tidy(directory)
    for slot in range(workers):
        handle = os.open(
            directory / f"{os.getppid()}-{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
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


def _tidy(directory: Path) -> None:
    for lock in directory.glob("*.lock"):
        if not Path("/proc", lock.name.partition("-")[0]).exists():
            lock.unlink(missing_ok=True)


@contextmanager
def pinned(place: Placement) -> Iterator[None]:
    """Keep every thread of this process where ``place`` says; called on the event loop's thread.

    Threads that start later inherit the CPUs of the one that starts them, native threads included; those
    that the event loop starts must call ``place_new``. On exit every thread gets back the CPUs that the
    calling thread had.
    """
    before = os.sched_getaffinity(0)
    _move_all(place.others)
    os.sched_setaffinity(0, place.loop)
    try:
        yield
    finally:
        _move_all(before)


def _move_all(cpus: Iterable[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cpus)
        except ProcessLookupError:
            continue
