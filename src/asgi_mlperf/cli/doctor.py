"""``asgi-mlperf doctor``: what this machine gives a worker, whether the caps hold, and what to change."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asgi_mlperf.cli import tables
from asgi_mlperf.garbage.kinds import collector_kind
from asgi_mlperf.host.cpu import cpu_budget
from asgi_mlperf.host.memory import memory_limit
from asgi_mlperf.host.threads import NativeThreadCaps, capping_new_threads
from asgi_mlperf.settings import Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

_PACKAGES = (
    *("asgi-mlperf", "starlette", "fastapi", "anyio", "orjson", "prometheus-client", "threadpoolctl"),
    *("numpy", "torch", "uvicorn"),
)
_TASKS = Path("/proc/self/task")
_MEBIBYTE = 1 << 20


def main(options: argparse.Namespace) -> None:
    """Examine this machine with the settings of this environment, and print what was found."""
    report = examine(Settings())
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for title in ("cpu", "memory", "native threads", "garbage", "versions"):
        rows = [[name, str(value)] for name, value in report[title].items()]
        print(tables.plain((title, ""), rows), end="\n\n")
    print("advice")
    print("------")
    for line in report["advice"] or ["nothing to change"]:
        print(f"- {line}")


def examine(settings: Settings) -> dict[str, Any]:
    """Return everything the doctor knows, in sections, and the advice that follows from it."""
    budget = cpu_budget(cpus=settings.threads.cpus, workers=settings.workers, environ=os.environ)
    inference_threads = settings.pool.threads or budget.per_worker
    limit = settings.threads.native or max(1, budget.per_worker // inference_threads)
    threads = _native_threads(limit, settings.threads.interop)
    report: dict[str, Any] = {
        "cpu": {
            "CPUs for all workers": f"{budget.cpus:g} ({budget.source})",
            "workers": f"{budget.workers} ({budget.workers_source})",
            "CPUs of this worker": budget.per_worker,
            "inference threads": inference_threads,
            "native threads per op": limit,
        },
        "memory": {"limit": _mebibytes(memory_limit())},
        "native threads": threads,
        "garbage": _garbage(),
        "versions": dict(_versions()),
    }
    report["advice"] = list(_advice(report, settings, budget.workers_source, limit))
    return report


def _native_threads(limit: int, interop: int) -> dict[str, Any]:
    for name in ("numpy", "torch"):
        if importlib.util.find_spec(name):
            __import__(name)
    caps = NativeThreadCaps(limit, interop)
    uncapped = caps.report()
    caps.apply()
    started: dict[str, int] = {}
    with capping_new_threads(caps.apply):
        thread = threading.Thread(target=lambda: started.update(_widths()))
        thread.start()
        thread.join()
    found: dict[str, Any] = {f"{library}, as found": count for library, count in uncapped.items()}
    found |= {f"{library}, capped": count for library, count in caps.report().items()}
    found |= {f"{op} in a fresh thread starts": f"{count} more" for op, count in started.items()}
    found["caps hold"] = _verdict(started, limit)
    return found


def _verdict(started: dict[str, int], limit: int) -> str:
    if not started:
        return "not known: needs /proc, and numpy or torch"
    return "yes" if all(count < limit for count in started.values()) else "no"


def _widths() -> Iterator[tuple[str, int]]:
    for name, op in _ops():
        before = _task_count()
        op()
        if before:
            yield name, _task_count() - before


def _ops() -> Iterator[tuple[str, Callable[[], Any]]]:
    if numpy := sys.modules.get("numpy"):
        matrix = numpy.ones((512, 512), numpy.float32)
        yield "numpy matmul", lambda: matrix @ matrix
    if torch := sys.modules.get("torch"):
        tensor, image = torch.ones(512, 512), torch.ones(4, 16, 64, 64)
        convolution = torch.nn.Conv2d(16, 16, 3)
        yield "torch matmul", lambda: tensor @ tensor
        yield "torch convolution", lambda: convolution(image)


def _task_count() -> int:
    return sum(1 for _ in _TASKS.iterdir()) if _TASKS.is_dir() else 0


def _garbage() -> dict[str, Any]:
    return {
        "collector": str(collector_kind()),
        "enabled": gc.isenabled(),
        "thresholds": ", ".join(map(str, gc.get_threshold())),
        "frozen objects": gc.get_freeze_count(),
    }


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"


def _mebibytes(size: int | None) -> str:
    return "none" if size is None else f"{size // _MEBIBYTE} MiB (cgroup)"


def _advice(report: dict[str, Any], settings: Settings, workers_source: str, limit: int) -> Iterator[str]:
    if not settings.enabled:
        yield "ASGI_MLPERF_ENABLED=false: the app runs as if the plugin were not there"
    if workers_source == "default":
        yield "if the server starts several workers, set ASGI_MLPERF_WORKERS to their number"
    if report["native threads"]["caps hold"] == "no":
        yield f"the caps do not hold: also set OMP_NUM_THREADS={limit} in the environment of the server"
    if not gc.isenabled():
        yield "gc is disabled here: collections at request ends still run, the safety valve cannot"
    if settings.gc.mode == "off":
        yield "ASGI_MLPERF_GC__MODE=off: full collections may stop requests; scheduled avoids that"
