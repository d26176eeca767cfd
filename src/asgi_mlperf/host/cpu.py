"""How many CPUs this worker may really use, and which limit says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asgi_mlperf.host import cgroup
from asgi_mlperf.host.supervisor import Workers, workers_seen
from asgi_mlperf.host.topology import affinity, physical_cores

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class CPUBudget:
    """The CPUs of one worker: ``max(1, floor(cpus / workers))``.

    ``cpus`` is the tightest of the affinity mask and the cgroup quotas, or the setting; ``source`` says
    which, ``detected`` what it would be without the setting. ``cores`` are the physical cores behind the
    mask. ``pinnable`` is true when the mask alone limits: a share of its CPUs is a share of what may be used.
    """

    cpus: float
    source: str
    detected: float
    cores: int
    workers: int
    workers_source: str
    workers_known: bool
    pinnable: bool

    @property
    def per_worker(self) -> int:
        """Whole CPUs for this worker, at least one."""
        return max(1, math.floor(self.cpus / self.workers))

    @property
    def cores_per_worker(self) -> int:
        """Threads that one op of this worker gains from: CPUs, but one per physical core, at least one."""
        return max(1, min(self.per_worker, self.cores // self.workers))


def cpu_budget(
    *,
    cpus: float | None,
    workers: int | None,
    environ: Mapping[str, str],
    root: Path = cgroup.ROOT,
    mask: Collection[int] | None = None,
) -> CPUBudget:
    """Work out this worker's CPU budget; ``cpus`` and ``workers`` given explicitly win over detection.

    ``mask`` stands for the affinity of this process.
    """
    mask = affinity() if mask is None else mask
    quota = cpu_quota(root)
    limits = [(float(len(mask)), "affinity")]
    if quota is not None:
        limits.append((quota, "cgroup quota"))
    detected, source = min(limits)
    seen = Workers(workers, "setting") if workers is not None else workers_seen(environ, root)
    return CPUBudget(
        cpus=detected if cpus is None else cpus,
        source=source if cpus is None else "setting",
        detected=detected,
        cores=len(physical_cores(mask, root)),
        workers=seen.count,
        workers_source=seen.source,
        workers_known=seen.known,
        pinnable=source == "affinity",
    )


def cpu_quota(root: Path = cgroup.ROOT) -> float | None:
    """Return the tightest cgroup CPU quota in CPUs, of this process's groups and all their ancestors."""
    quotas = [
        quota
        for directory in cgroup.ancestors("cpu", root)
        for quota in (_quota_v2(directory), _quota_v1(directory))
        if quota is not None
    ]
    return min(quotas, default=None)


def _quota_v2(directory: Path) -> float | None:
    quota, _, period = (cgroup.read(directory / "cpu.max") or "").partition(" ")
    return _ratio(quota, period)


def _quota_v1(directory: Path) -> float | None:
    quota = cgroup.read(directory / "cpu.cfs_quota_us")
    period = cgroup.read(directory / "cpu.cfs_period_us")
    return _ratio(quota or "", period or "")


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0 or int(quota) == 0:
        return None  # "max" in v2 and -1 in v1 mean no limit
    return int(quota) / int(period)
