"""How many CPUs this worker may really use, and which limit says so."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asgi_mlperf.host import cgroup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class CPUBudget:
    """The CPUs of one worker: ``max(1, floor(cpus / workers))``.

    ``cpus`` is the tightest of the affinity mask and the cgroup quotas, or the explicit setting;
    ``source`` says which, ``workers_source`` where the number of workers came from.
    """

    cpus: float
    source: str
    workers: int
    workers_source: str

    @property
    def per_worker(self) -> int:
        """Whole CPUs for this worker, at least one."""
        return max(1, math.floor(self.cpus / self.workers))


def cpu_budget(
    *,
    cpus: float | None,
    workers: int | None,
    environ: Mapping[str, str],
    root: Path = cgroup.ROOT,
) -> CPUBudget:
    """Work out this worker's CPU budget; ``cpus`` and ``workers`` given explicitly win over detection."""
    count, count_source = _workers(workers, environ)
    if cpus is not None:
        return CPUBudget(cpus, "setting", count, count_source)
    limits = [(float(_affinity()), "affinity")]
    quota = _quota(root)
    if quota is not None:
        limits.append((quota, "cgroup quota"))
    found, source = min(limits)
    return CPUBudget(found, source, count, count_source)


def _workers(setting: int | None, environ: Mapping[str, str]) -> tuple[int, str]:
    if setting is not None:
        return setting, "setting"
    concurrency = environ.get("WEB_CONCURRENCY", "")
    if concurrency.isdigit() and int(concurrency) > 0:
        return int(concurrency), "WEB_CONCURRENCY"
    return 1, "default"


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    quotas = [
        quota
        for directory in cgroup.ancestors("cpu", root)
        for quota in (_quota_v2(directory), _quota_v1(directory))
        if quota is not None
    ]
    return min(quotas, default=None)


def _quota_v2(directory: Path) -> float | None:
    words = (cgroup.read(directory / "cpu.max") or "").split()
    return _ratio(*words) if len(words) == 2 else None  # noqa: PLR2004 - "quota period"


def _quota_v1(directory: Path) -> float | None:
    quota = cgroup.read(directory / "cpu.cfs_quota_us")
    period = cgroup.read(directory / "cpu.cfs_period_us")
    return _ratio(quota, period) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0 or int(quota) == 0:
        return None  # "max" in v2 and -1 in v1 mean no limit
    return int(quota) / int(period)
