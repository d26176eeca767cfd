"""What ``plugin.run`` costs beside a bare hop to a thread through AnyIO, one call at a time."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvloop
from starlette.applications import Starlette

from asgi_mlperf import Plugin, Settings

Hop = Callable[[Callable[[], None]], Awaitable[None]]


def nothing() -> None:
    """Return at once, so that only the hop is measured."""


async def microseconds(hop: Hop, calls: int) -> float:
    """Return what one call takes, in the mean of ``calls`` in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        await hop(nothing)
    return (time.perf_counter() - began) / calls * 1e6


async def measure(rounds: int, calls: int) -> dict[str, list[float]]:
    plugin = Plugin(Settings())
    app = Starlette()
    plugin.install(app)
    contenders: dict[str, Hop] = {
        "anyio.to_thread.run_sync": anyio.to_thread.run_sync,
        "plugin.run": plugin.run,
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    await microseconds(anyio.to_thread.run_sync, 1)  # its thread is from before, and as AnyIO makes it
    async with app.router.lifespan_context(app):
        for hop in contenders.values():
            await microseconds(hop, calls)
        for turn in range(rounds):
            for name in list(contenders) if turn % 2 else reversed(contenders):
                taken[name].append(await microseconds(contenders[name], calls))
    return taken


def row(loop: str, taken: dict[str, list[float]]) -> str:
    bare, ours = taken["anyio.to_thread.run_sync"], taken["plugin.run"]
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    return f"| {loop} | {spread(bare, 1)} | {spread(ours, 1)} | {spread(ratios, 2)} |"


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2_000, help="in each round, by each contender")
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    loops: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
    results = {loop: run(measure(options.rounds, options.calls)) for loop, run in loops.items()}
    print("| event loop | `anyio.to_thread.run_sync`, µs | `plugin.run`, µs | ratio |\n|---|---|---|---|")
    for loop, taken in results.items():
        print(row(loop, taken))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
