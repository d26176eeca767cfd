"""How much memory this process uses, and how much it may."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.host import cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NO_LIMIT = 1 << 60  # cgroup v1 spells "no limit" as a number near 2**63


def memory_limit(root: Path = cgroup.ROOT) -> int | None:
    """Return the tightest cgroup memory limit in bytes, or None where there is none."""
    limits = [
        int(text)
        for directory in cgroup.ancestors("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := cgroup.read(directory / name)) and text.isdigit() and int(text) < _NO_LIMIT
    ]
    return min(limits, default=None)


@contextmanager
def resident_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that gives this process's resident memory in bytes; 0 where /proc is missing.

    It keeps one file open, which makes it quick enough to be called between requests. In a forked child
    it goes on to tell the parent's memory.
    """
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield lambda: 0
        return
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        yield lambda: int(os.pread(statm, 64, 0).split(None, 2)[1]) * page
    finally:
        os.close(statm)
