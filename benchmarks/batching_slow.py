"""Batching a model of about 20 ms a batch: beside a fixed window, BentoML's dispatcher and the ideal.

``contenders/slow_model.py`` says how. Ways to batch take turns; printed are the median over rounds and the
least and most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from batching_report import told
from batching_servers import CONTENDERS
from common import Figures, markdown, spread

WAYS = ("asgi-mlperf", "fixed window of 5 ms", "BentoML's dispatcher")
COLUMNS = {"items/s": ".0f", "of the ideal": ".3f", "mean batch": ".1f", "p50 ms": ".1f", "p99 ms": ".1f"}


def measured(way: str, python: str, *arguments: str) -> Figures:
    interpreter = python if way.startswith("BentoML") else sys.executable
    command = [interpreter, str(CONTENDERS / "slow_model.py"), way, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{way} failed: {ran.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def situations(options: argparse.Namespace) -> dict[str, list[str]]:
    closed = {f"closed loop, {callers} callers": ["--callers", str(callers)] for callers in options.callers}
    return closed | {f"open loop at {load:g} of capacity": ["--load", str(load)] for load in options.loads}


def run(options: argparse.Namespace) -> dict[str, dict[str, list[Figures]]]:
    results: dict[str, Any] = {name: {} for name in situations(options)}
    ways = list(WAYS)
    for number, (name, arguments) in itertools.product(range(options.rounds), situations(options).items()):
        for way in ways if number % 2 == 0 else reversed(ways.copy()):
            try:
                seconds = ["--seconds", str(options.seconds), "--seed", str(number)]
                figures = measured(way, options.python, *arguments, *seconds)
            except RuntimeError as reason:
                print(f"left out: {reason}", file=sys.stderr)
                ways.remove(way)
                continue
            results[name].setdefault(way, []).append(figures)
            print(f"round {number + 1}, {name}, {way}: {told(figures)}", file=sys.stderr)
    return results


def table(results: dict[str, dict[str, list[Figures]]]) -> str:
    rows = []
    for name, ways in results.items():
        for way, rounds in ways.items():
            cells = {
                column: spread([figures[column] for figures in rounds], form)
                for column, form in COLUMNS.items()
            }
            if name.startswith("open"):
                cells["of the ideal"] = ""  # what comes decides it, not the way to batch
            rows.append([name, way, *cells.values()])
    return markdown(["load", "way to batch", *COLUMNS], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has requirements.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of load")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.8, 0.95], help="of capacity")
    parser.add_argument("--callers", type=int, nargs="*", default=[64])
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    results = run(options)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
