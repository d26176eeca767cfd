"""The figures, and the table that compares them."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import ceil
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from example_app.demo.load import Measured

COLUMNS = ("Endpoint", "p50 ms", "p99 ms", "requests/s")
LEGEND = "Endpoint (connections): stock → with the plugin (how many times better)"


@dataclass(frozen=True)
class Figures:
    """One endpoint in one mode."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    requests_per_s: float


@dataclass(frozen=True)
class Comparison:
    """One endpoint in both modes."""

    endpoint: str
    connections: int
    stock: Figures
    plugin: Figures

    @property
    def ratios(self) -> dict[str, float]:
        """How many times better the plugin is: above 1 is faster."""
        return {
            "p50": self.stock.p50_ms / self.plugin.p50_ms,
            "p99": self.stock.p99_ms / self.plugin.p99_ms,
            "requests_per_s": self.plugin.requests_per_s / self.stock.requests_per_s,
        }

    def cells(self) -> tuple[str, str, str, str]:
        """Return the row of the table, in the order of ``COLUMNS``."""
        stock, plugin, ratios = self.stock, self.plugin, self.ratios
        rates = f"{_short(stock.requests_per_s)} → {_short(plugin.requests_per_s)}"
        return (
            f"{self.endpoint} ({self.connections})",
            f"{_short(stock.p50_ms)} → {_short(plugin.p50_ms)} ({ratios['p50']:.1f}x)",
            f"{_short(stock.p99_ms)} → {_short(plugin.p99_ms)} ({ratios['p99']:.1f}x)",
            f"{rates} ({ratios['requests_per_s']:.1f}x)",
        )


def figures(measured: Measured) -> Figures:
    """Sum up what was measured."""
    ordered = sorted(measured.latencies_s)
    return Figures(
        requests=len(ordered),
        seconds=measured.seconds,
        p50_ms=1000 * percentile(ordered, 50),
        p99_ms=1000 * percentile(ordered, 99),
        requests_per_s=len(ordered) / measured.seconds,
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that ``percent`` of the sorted values do not exceed (nearest rank)."""
    if not ordered:
        raise ValueError("No values: a percentile needs at least one.")
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return the table for a terminal."""
    shown = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption=LEGEND, caption_justify="left"
    )
    shown.add_column(COLUMNS[0], no_wrap=True)
    for column in COLUMNS[1:]:
        shown.add_column(column, justify="right", no_wrap=True)
    for comparison in comparisons:
        shown.add_row(*comparison.cells())
    return shown


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the same table as Markdown, with what it was measured on."""
    rows = (COLUMNS, ("---", "---:", "---:", "---:"), *(comparison.cells() for comparison in comparisons))
    lines = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join((*lines, "", f"{LEGEND}. {conditions(comparisons)}", ""))


def conditions(comparisons: Sequence[Comparison]) -> str:
    """Say what was measured, and on what."""
    seconds = max(round(comparison.plugin.seconds) for comparison in comparisons)
    return (
        f"Each figure from {seconds} s of keep-alive connections that send a request after each answer, "
        f"stock and plugin taking turns; one uvicorn worker and the load share {host()['cpus']} CPUs; "
        f"CPython {host()['python']}, torch {host()['torch']}, FastAPI {host()['fastapi']}."
    )


def as_json(comparisons: Sequence[Comparison], memory_mb: dict[str, float | None]) -> dict[str, Any]:
    """Return everything measured, for a file."""
    rows = [asdict(comparison) | {"ratios": comparison.ratios} for comparison in comparisons]
    return {"host": host(), "memory_mb": memory_mb, "endpoints": rows}


def host() -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = {name: version(name) for name in ("fastapi", "starlette", "torch", "uvicorn")}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpus": cpus, "python": platform.python_version(), **packages}
