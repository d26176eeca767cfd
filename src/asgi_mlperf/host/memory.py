"""How much memory this process uses, and how much it may."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from asgi_mlperf.host import cgroup

if TYPE_CHECKING:
    from collections.abc import Callable

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


def rss_reader() -> Callable[[], int]:
    """Return a function that gives this process's resident memory in bytes; 0 where /proc is missing."""
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    statm = Path("/proc/self/statm")

    def rss() -> int:
        try:
            return int(statm.read_bytes().split()[1]) * page
        except OSError:
            return 0

    return rss
