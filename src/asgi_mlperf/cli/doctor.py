"""``asgi-mlperf doctor``: what this machine gives a worker, whether the caps hold, and what to change."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

from asgi_mlperf.cli import tables
from asgi_mlperf.garbage import words
from asgi_mlperf.host import cgroup
from asgi_mlperf.host.cpu import cpu_budget
from asgi_mlperf.host.heaps import heaps, in_the_way
from asgi_mlperf.host.memory import memory_limit
from asgi_mlperf.host.selfcheck import check, complaint
from asgi_mlperf.host.supervisor import SINGLE
from asgi_mlperf.host.tasks import watching
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.widths import widths
from asgi_mlperf.settings import Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from asgi_mlperf.host.cpu import CPUBudget
    from asgi_mlperf.host.selfcheck import Finding
    from asgi_mlperf.host.widths import Widths

_PACKAGES = (
    *("asgi-mlperf", "starlette", "fastapi", "anyio", "orjson", "prometheus-client", "threadpoolctl"),
    *("numpy", "torch", "uvicorn"),
)
_THREADS_OF_THEIR_OWN = {
    "onnxruntime": "SessionOptions.intra_op_num_threads = {n}, inter_op_num_threads = 1; OMP_* is not heeded",
    "tensorflow": "tf.config.threading.set_intra_op_parallelism_threads({n}) before the first op; inter: 1",
    "numexpr": "numexpr.set_num_threads({n}), or NUMEXPR_NUM_THREADS={n}",
    "tokenizers": "RAYON_NUM_THREADS={n}, or TOKENIZERS_PARALLELISM=false for one thread",
    "polars": "POLARS_MAX_THREADS={n} before it is imported",
}
_MEBIBYTE = 1 << 20


def main(options: argparse.Namespace) -> None:
    """Examine this machine with the settings of this environment, and print what was found."""
    report = examine(Settings())
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for title in (name for name, section in report.items() if section and name != "advice"):
        rows = [[name, str(value)] for name, value in report[title].items()]
        print(tables.plain((title, ""), rows), end="\n\n")
    print("advice")
    print("------")
    for line in report["advice"] or ["nothing to change"]:
        print(f"- {line}")


def examine(settings: Settings, root: Path = cgroup.ROOT) -> dict[str, Any]:
    """Return everything the doctor knows, in sections, and the advice that follows from it."""
    budget = cpu_budget(cpus=settings.threads.cpus, workers=settings.workers, environ=os.environ, root=root)
    inference_threads = settings.pool.threads or budget.per_worker
    allowed = widths(
        native=settings.threads.native,
        cpus=budget.per_worker,
        cores=budget.cores_per_worker,
        inference_threads=inference_threads,
    )
    freed_memory = _freed_memory(settings, budget, memory_limit(root))  # before ops start threads with heaps
    found, finding = _native_threads(NativeThreadCaps(allowed, interop=settings.threads.interop))
    report: dict[str, Any] = {
        "cpu": {
            "CPUs for all workers": f"{budget.cpus:g} ({budget.source})",
            "physical cores": budget.cores,
            "workers": f"{budget.workers} ({budget.workers_source})",
            "CPUs of this worker": budget.per_worker,
            "inference threads": inference_threads,
            "native threads per op": _width(allowed),
        },
        "memory": {"limit": _mebibytes(memory_limit(root)), "freed memory": freed_memory},
        "native threads": found,
        "libraries to set by hand": _own_threads(allowed.share),
        "garbage": words.explained(settings.gc, memory_limit(root)),
        "versions": dict(_versions()),
    }
    report["advice"] = list(_advice(settings, budget, finding))
    return report


def _width(allowed: Widths) -> str:
    if allowed.alone == allowed.share:
        return f"{allowed.alone}"
    return f"{allowed.alone} while one call runs, {allowed.share} while all inference threads are busy"


def _freed_memory(settings: Settings, budget: CPUBudget, limit: int | None) -> str:
    threads = settings.threads
    if not (settings.enabled and threads.enabled and threads.keep_freed_memory):
        return "the allocator's own rule, as set"
    if reason := in_the_way(os.environ):
        return f"the allocator's own rule: {reason}"
    wanted = heaps(budget.per_worker, limit, budget.workers)
    return f"kept for the next request: {wanted.count} heaps, {wanted.kept // _MEBIBYTE} MiB each"


def _native_threads(caps: NativeThreadCaps) -> tuple[dict[str, Any], Finding]:
    for name in ("numpy", "torch"):
        if importlib.util.find_spec(name):
            __import__(name)
    caps.refresh()
    uncapped = caps.report()
    try:
        with watching(caps):
            finding = check(caps)
    finally:
        caps.restore()
    found: dict[str, Any] = {f"{library}, as found": count for library, count in uncapped.items()}
    found |= {f"{library}, capped": count for library, count in finding.counts.items()}
    found |= {f"{op} in a fresh thread starts": f"{count} more" for op, count in finding.started.items()}
    found["caps hold"] = _verdict(finding)
    return found, finding


def _verdict(finding: Finding) -> str:
    if finding.above:
        return "no"
    return "yes" if finding.started else "not known: needs /proc, and numpy or torch"


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"


def _mebibytes(size: int | None) -> str:
    return "none" if size is None else f"{size // _MEBIBYTE} MiB (cgroup)"


def _advice(settings: Settings, budget: CPUBudget, finding: Finding) -> Iterator[str]:
    if not settings.enabled:
        yield "ASGI_MLPERF_ENABLED=false: the app runs as if the plugin were not there"
    if not budget.workers_known or budget.workers_source == SINGLE.source:
        yield "no server is seen from here: if yours starts several workers, set ASGI_MLPERF_WORKERS"
    if budget.cpus > budget.detected:
        yield (
            f"ASGI_MLPERF_THREADS__CPUS={budget.cpus:g} is more than the {budget.detected:g} CPUs found "
            "here: workers will wait for each other"
        )
    if finding.above:
        yield complaint(finding)
    yield from words.advice(settings.gc)


def _own_threads(width: int) -> dict[str, str]:
    return {
        module: text.format(n=width)
        for module, text in _THREADS_OF_THEIR_OWN.items()
        if importlib.util.find_spec(module)
    }
