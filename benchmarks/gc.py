"""What each way to run the garbage collector costs a server, side by side, under load.

One uvicorn worker per mode serves ``gc_app.py``; all of them stay up, and wrk loads one at a time. Modes
alternate within a round; printed are the median over rounds and the spread from lowest to highest. The CPU
time of a request suffers least from what else the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from common import Figures, markdown, require_wrk, spread
from gc_server import Server, load, served

MODES = ("stock", "freeze only", "raised thresholds", "gc.disable()", "asgi-mlperf")
OURS, STOCK, DISABLED = "asgi-mlperf", "stock", "gc.disable()"
SHAPES = {
    "rec": "5,000 objects, never awaits, 4 connections",
    "io": "5,000 objects, awaits 5 ms while holding them, 16 connections",
    "sync": "5,000 objects in a `def` endpoint, 8 connections",
    "huge": "200,000 objects, 2 connections",
    "tiny": "no objects, 32 connections",
}


def measured(server: Server, shape: str, seconds: float) -> Figures:
    """Load one shape; add what a request cost in CPU time and what the collector took of it."""
    paused, lasted = server.times()
    cpu = server.cpu_ms()
    figures = load(server, shape, seconds)
    figures["CPU ms/request"] = (server.cpu_ms() - cpu) / figures["requests"]
    paused_after, lasted_after = server.times()
    figures["GC in requests %"] = 100 * (paused_after - paused) / max(lasted_after - lasted, 1e-9)
    figures["RSS MB"] = server.resident_mb()
    return figures


def run(options: argparse.Namespace) -> dict[str, dict[str, list[Figures]]]:
    results: dict[str, dict[str, list[Figures]]] = {}
    with ExitStack() as stack:
        servers = {mode: stack.enter_context(served(mode)) for mode in options.modes}
        for shape in options.shapes:
            results[shape] = {mode: [] for mode in servers}
            for server in servers.values():
                load(server, shape, 1.0)
            for number, (mode, server) in itertools.product(range(options.rounds), servers.items()):
                figures = measured(server, shape, options.seconds)
                results[shape][mode].append(figures)
                print(f"/{shape}, round {number + 1}, {mode}: {told(figures)}", file=sys.stderr)
    return results


def told(figures: Figures) -> str:
    return ", ".join(f"{value:.4g} {name}" for name, value in figures.items())


def tables(results: dict[str, dict[str, list[Figures]]]) -> str:
    return "\n\n".join(f"/{shape}: {SHAPES[shape]}\n\n{table(modes)}" for shape, modes in results.items())


def table(modes: dict[str, list[Figures]]) -> str:
    names = ("requests/s", "p50 ms", "p99 ms", "CPU ms/request", "GC in requests %", "RSS MB")
    rows = (
        [mode, *(spread([figures[name] for figures in rounds], ".3g") for name in names)]
        for mode, rounds in modes.items()
    )
    return markdown(["mode", *names], rows)


def ratios(modes: dict[str, list[Figures]]) -> dict[str, float]:
    """Compare round by round, as the machine's speed differs more between rounds than within one."""

    def median(name: str, mode: str, other: str) -> float:
        pairs = zip(modes[mode], modes[other], strict=True)
        return statistics.median(ours[name] / theirs[name] for ours, theirs in pairs)

    return {
        "requests/s, ours / gc.disable()": median("requests/s", OURS, DISABLED),
        "CPU, ours / gc.disable()": median("CPU ms/request", OURS, DISABLED),
        "p99, ours / gc.disable()": median("p99 ms", OURS, DISABLED),
        "p99, stock / ours": median("p99 ms", STOCK, OURS),
    }


def compared(results: dict[str, dict[str, list[Figures]]]) -> str:
    rows = {shape: ratios(modes) for shape, modes in results.items()}
    names = list(next(iter(rows.values())))
    cells = ([f"/{shape}", *(f"{row[name]:.3g}" for name in names)] for shape, row in rows.items())
    return markdown(["shape", *names], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="load per shape, mode and round")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, default=Path("gc.json"), help="every round's figures go here")
    options = parser.parse_args()
    require_wrk()
    results = run(options)
    print(tables(results))
    if {OURS, STOCK, DISABLED} <= set(options.modes):
        print("\nmedian of the ratios within a round\n\n" + compared(results))
    packages = ("fastapi", "starlette", "torch", "uvicorn", "uvloop", "httptools")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    print("\n" + ", ".join(f"{name} {number}" for name, number in versions.items()))
    options.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
