"""Tables and plots from the ``--json`` files of ``batching.py``, several runs put together.

``python benchmarks/batching_report.py RUN.json ... --plot benchmarks/plots/batching.png``
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Figures, markdown, spread

OURS = ("asgi-mlperf", "asgi-mlperf (endpoint)", "asgi-mlperf (Starlette)")
COLUMNS = {
    "requests/s": ".0f",
    "p50 ms": ".3g",
    "p99 ms": ".3g",
    "CPU µs/request": ".0f",
    "idle CPU %": ".2f",
}
INK = "#808080"  # as readable on white as on black
COLOURS = {
    "asgi-mlperf": "#e6550d",
    "asgi-mlperf (endpoint)": "#cc4c02",
    "asgi-mlperf (Starlette)": "#a63603",
    "asgi-mlperf (FastAPI's defaults)": "#fdd0a2",
    "asgi-mlperf (two writes)": "#fd8d3c",
    "asgi-mlperf (granian)": "#fdae6b",
    "asgi-mlperf (stock's route)": "#d4a017",
    "FastAPI async": "#3182bd",
    "FastAPI def": "#6baed6",
    "mosec": "#31a354",
    "mosec (orjson)": "#74c476",
    "LitServe": "#9467bd",
    "BentoML": "#e377c2",
    "Ray Serve": "#17becf",
}

Run = dict[str, Any]
Turn = dict[str, Any]


def told(figures: Figures) -> str:
    return ", ".join(f"{value:.4g} {name}" for name, value in figures.items())


class Runs:
    """The turns of several runs; rounds of different runs are different rounds."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.turns: list[Turn] = [
            turn | {"round": (number, turn["round"])}
            for number, run in enumerate(runs)
            for turn in run["figures"]
        ]
        self.absent = {name: reason for run in runs for name, reason in run["absent"].items()}
        self.versions = runs[-1]["versions"]

    def having(self, **facts: object) -> list[Turn]:
        return [turn for turn in self.turns if facts.items() <= turn.items()]

    def distinct(self, name: str) -> list[Any]:
        return list(dict.fromkeys(turn[name] for turn in self.turns))

    def median(self, column: str, **facts: object) -> float:
        return statistics.median(turn[column] for turn in self.having(**facts))

    def sorted(self, name: str) -> list[Any]:
        return sorted(self.distinct(name))

    def ranked(self) -> list[str]:
        """Return the contenders: those with one worker first, then those that answered most."""
        best: dict[str, tuple[int, float]] = {}
        for name in self.distinct("contender"):
            turns = self.having(contender=name)
            best[name] = (turns[0]["workers"], -max(turn["requests/s"] for turn in turns))
        return sorted(best, key=lambda name: best[name])

    def cell(self, contender: str, column: str, connections: int) -> str:
        turns = self.having(contender=contender, connections=connections)
        return spread([turn[column] for turn in turns], COLUMNS[column]) if turns else "-"

    def ratio(self, column: str, ours: dict[str, Any], family: str) -> str:
        """Compare round by round: the machine's speed differs more between rounds than within one."""
        workers = min(ours["workers"], max(turn["workers"] for turn in self.having(family=family)))
        theirs = self.having(**ours | {"family": family, "workers": workers})
        other = {turn["round"]: turn[column] for turn in theirs}
        ratios = [
            turn[column] / other[turn["round"]] for turn in self.having(**ours) if turn["round"] in other
        ]
        return spread(ratios, ".2f") if ratios else "-"


def report(runs: Sequence[Run]) -> str:
    pooled = Runs(runs)
    parts = [table(pooled)]
    parts += [compared(pooled, ours) for ours in OURS if pooled.having(family=ours)]
    parts += [f"{name} is left out: {reason}" for name, reason in pooled.absent.items()]
    for where, versions in pooled.versions.items():
        parts.append(f"{where}: " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    return "\n\n".join(parts)


def table(runs: Runs) -> str:
    """A row for each contender, columns for each number of connections."""
    levels = runs.sorted("connections")
    cells = [("p50 ms", 1)] if 1 in levels else []
    for level in levels:
        cells += [("requests/s", level), ("p99 ms", level)] if level > 1 else []
    cells += [("CPU µs/request", max(levels))]
    cells += [("idle CPU %", max(levels))] if any("idle CPU %" in turn for turn in runs.turns) else []
    rows = []
    for contender in runs.ranked():
        failed = sum(turn["failed"] + turn["socket errors"] for turn in runs.having(contender=contender))
        rows.append([contender, *(runs.cell(contender, *cell) for cell in cells), f"{failed:.0f}"])
    head = [f"{column} at {level}" for column, level in cells]
    return markdown(["contender", *head, "failed"], rows)


def compared(runs: Runs, family: str) -> str:
    """Set ours beside what it means to be ahead of, with as many workers and in the same round."""
    comparisons = [
        *itertools.product(("requests/s", "p99 ms"), ("mosec", "mosec (orjson)", "LitServe")),
        ("p50 ms", "FastAPI async"),
    ]
    comparisons = [(column, other) for column, other in comparisons if runs.having(family=other)]
    rows = []
    for connections, workers in itertools.product(runs.sorted("connections"), runs.sorted("workers")):
        ours = {"family": family, "connections": connections, "workers": workers}
        ratios = (runs.ratio(column, ours, other) for column, other in comparisons)
        rows.append([str(connections), str(workers), *ratios])
    head = [f"{column.removesuffix(' ms')} ÷ {other}" for column, other in comparisons]
    return f"{family}, round by round\n\n" + markdown(["connections", "workers", *head], rows)


def plot(runs: Sequence[Run], file: Path) -> None:
    """Draw p99 over requests per second, a line for each contender from few to many connections."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - of requirements.txt; a table does without

    pooled = Runs(runs)
    plt.rcParams |= {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "font.size": 9}
    plt.rcParams |= {"xtick.color": INK, "ytick.color": INK}
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained", sharex=True, sharey=True)
    for workers, axes in zip((1, 2), panels, strict=True):
        for name in dict.fromkeys(turn["family"] for turn in pooled.having(workers=workers)):
            draw(axes, pooled, {"family": name, "workers": workers})
        axes.set(xscale="log", yscale="log", xlabel="requests/s", ylabel="p99 latency, ms")
        axes.set_title("one worker" if workers == 1 else f"{workers} workers")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color=INK, alpha=0.25, which="both")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle("1, 32 and 128 connections (larger dots): right and down is better")
    figure.savefig(file, transparent=True, dpi=110)


def draw(axes: Any, runs: Runs, of: dict[str, Any]) -> None:
    levels = sorted({turn["connections"] for turn in runs.having(**of)})
    points = [
        [runs.median(column, **of, connections=level) for level in levels]
        for column in ("requests/s", "p99 ms")
    ]
    colour = COLOURS[of["family"]]
    axes.plot(*points, color=colour, marker="o", markersize=4, label=of["family"])
    axes.scatter(*points, s=[15 * (1 + number) ** 1.5 for number in range(len(levels))], color=colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--plot", type=Path, help="draw the plot here; needs matplotlib")
    options = parser.parse_args()
    runs = [json.loads(file.read_text()) for file in options.runs]
    print(report(runs))
    if options.plot:
        plot(runs, options.plot)


if __name__ == "__main__":
    main()
