"""Which CPUs are siblings on one physical core, so that compute is counted and placed by cores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from asgi_mlperf.host import cgroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def affinity() -> frozenset[int]:
    """Return the CPUs that this process may run on; all of them where there is no affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: Iterable[int], root: Path = cgroup.ROOT) -> list[list[int]]:
    """Group ``cpus`` by physical core, neighbours first; every CPU is a core where nothing is known."""
    left = set(cpus)
    cores = []
    for cpu in sorted(left):
        if cpu in left:
            core = sorted((_siblings(cpu, root) & left) | {cpu})
            left.difference_update(core)
            cores.append(core)
    return cores


def _siblings(cpu: int, root: Path) -> set[int]:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    return set(_numbers(cgroup.read(topology / "thread_siblings_list") or ""))


def _numbers(text: str) -> Iterator[int]:
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
