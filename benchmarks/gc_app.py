"""The app that ``gc.py`` serves: five shapes of garbage, under the collector that ``GC_BENCH_MODE`` names.

Every mode serves the same app with the same plugin, so that nothing but the collector differs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from fastapi import FastAPI

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.runtime import process

MODE = os.environ["GC_BENCH_MODE"]
MEMORY_LIMIT_MB = int(os.environ.get("GC_BENCH_LIMIT_MB", "0"))
LEAK_KB = int(os.environ.get("GC_BENCH_LEAK_KB", "1024"))
RESIDENT_OBJECTS = 200_000
PLUGIN_MODES = {"asgi-mlperf": "scheduled", "freeze only": "freeze"}


class Record:
    """One object that the collector tracks."""

    __slots__ = ("number", "peer")

    def __init__(self, number: int) -> None:
        self.number = number
        self.peer: Record | None = None


def records(count: int) -> list[Record]:
    """Make ``count`` objects, one in a hundred of them in a cycle of two."""
    made = [Record(number) for number in range(count)]
    for number in range(0, count // 100, 2):
        made[number].peer, made[number + 1].peer = made[number + 1], made[number]
    return made


def leak() -> None:
    """Leave a cycle with a buffer that only the collector can free."""
    cycle: list[object] = [b"x" * (LEAK_KB << 10)]
    cycle.append(cycle)


def total(of: list[Record]) -> dict[str, int]:
    return {"total": sum(record.number for record in of)}


@asynccontextmanager
async def resident(_: FastAPI) -> AsyncIterator[dict[str, object]]:
    thresholds = gc.get_threshold()
    if MODE == "raised thresholds":
        gc.set_threshold(10_000, 10, 2**31 - 1)
    if MODE == "gc.disable()":
        gc.disable()
    yield {"resident": records(RESIDENT_OBJECTS), "model": torch.nn.Linear(8, 8)}
    gc.set_threshold(*thresholds)
    gc.enable()


app = FastAPI(lifespan=resident)


@app.get("/rec")
async def rec() -> dict[str, int]:
    return total(records(5_000))


@app.get("/io")
async def io() -> dict[str, int]:
    made = records(5_000)
    await asyncio.sleep(0.005)
    return total(made)


@app.get("/sync")
def sync() -> dict[str, int]:
    return total(records(5_000))


@app.get("/huge")
async def huge() -> dict[str, int]:
    return total(records(200_000))


@app.get("/tiny")
async def tiny() -> dict[str, int]:
    return {"total": 0}


@app.get("/leak")
async def leak_one() -> dict[str, int]:
    leak()
    return {"leaked": 1}


@app.get("/block")
async def block(seconds: float) -> dict[str, int]:
    """Block the event loop and leak as fast as it goes."""
    over, leaked = time.monotonic() + seconds, 0
    while time.monotonic() < over:
        leak()
        leaked += 1
    return {"leaked": leaked}


@app.get("/memory")
def memory() -> dict[str, int]:
    """Tell the resident memory now and at its highest, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) for name in ("VmRSS", "VmHWM")}


if MEMORY_LIMIT_MB:
    process.memory_limit = lambda: MEMORY_LIMIT_MB << 20

Plugin(Settings(gc={"mode": PLUGIN_MODES.get(MODE, "off")})).install(app)
