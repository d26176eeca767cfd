"""Both servers, under the same load in turns, so that what else the machine does weighs on both alike."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from example_app.demo.failure import DemoFailed
from example_app.demo.load import Measured, send
from example_app.demo.report import Comparison, figures
from example_app.demo.server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from example_app.demo.load import Workload
    from example_app.demo.server import Server

_TURNS = ("stock", "plugin", "plugin", "stock")
_WARM_UP_S = 0.5


@dataclass
class _Run:
    """One endpoint in one mode, over several turns."""

    server: Server
    task: TaskID
    measured: Measured = field(default_factory=Measured)


def compare(
    console: Console, workloads: Sequence[Workload], seconds: float
) -> tuple[list[Comparison], dict[str, float | None]]:
    """Send each workload to both servers for ``seconds`` each; return the figures, and the memory in MB."""
    with _both_serving(console) as servers, _progress(console) as progress:
        comparisons = [_compare_one(servers, workload, seconds, progress) for workload in workloads]
        return comparisons, {mode: server.memory_mb() for mode, server in servers.items()}


@contextmanager
def _both_serving(console: Console) -> Iterator[dict[str, Server]]:
    with console.status("starting the stock app") as status, serving(plugin=False) as stock:
        status.update("starting the app with the plugin")
        with serving(plugin=True) as plugin:
            status.stop()
            yield {"stock": stock, "plugin": plugin}


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        console=console,
    )


def _compare_one(
    servers: dict[str, Server], workload: Workload, seconds: float, progress: Progress
) -> Comparison:
    runs = {
        mode: _Run(server, progress.add_task(f"{mode:6} {workload.path:9}", total=seconds, said=""))
        for mode, server in servers.items()
    }
    for mode in _TURNS:
        _take_turn(runs[mode], workload, seconds / _TURNS.count(mode), progress)
    for run in runs.values():
        workload.check(run.measured.answers)
        answers = len(run.measured.latencies_s)
        progress.update(run.task, completed=seconds, said=f"{answers:5} answers, all right")
    stock, plugin = figures(runs["stock"].measured), figures(runs["plugin"].measured)
    return Comparison(workload.path, workload.connections, stock, plugin)


def _take_turn(run: _Run, workload: Workload, seconds: float, progress: Progress) -> None:
    measured, before_s = run.measured, run.measured.seconds

    def advance(elapsed_s: float) -> None:
        rate = len(measured.latencies_s) / (before_s + elapsed_s)
        progress.update(run.task, completed=before_s + elapsed_s, said=f"{rate:5.0f} requests/s")

    load = send(
        run.server.base_url, workload, measured, warm_up_s=_WARM_UP_S, seconds=seconds, progress=advance
    )
    try:
        asyncio.run(load)
    except DemoFailed:
        run.server.raise_if_ended(within_s=1)
        raise
