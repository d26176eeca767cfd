"""A worker that leaks as fast as it can stays under the memory that a stock worker needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

WORKER = """
import asyncio, gc, json, pathlib, sys, time
from starlette.applications import Starlette
from asgi_mlperf import Plugin, Settings
from asgi_mlperf.runtime import process

mode, limit = sys.argv[1], int(sys.argv[2])
assert hasattr(process, "memory_limit")
process.memory_limit = lambda: limit or None

def memory(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) << 10

def leak_on_a_blocked_loop(megabytes):
    for _ in range(megabytes):
        cycle = [b"x" * (1 << 20)]
        cycle.append(cycle)

async def main():
    plugin = Plugin(Settings(gc={"mode": mode}, metrics={"enabled": False}, threads={"enabled": False}))
    app = Starlette()
    async with plugin.lifespan(app):
        before = memory("VmRSS")
        leak_on_a_blocked_loop(4_000)
        print(json.dumps({"peak": memory("VmHWM"), "grown": memory("VmHWM") - before}))

asyncio.run(main())
"""


def worker(mode: str, limit: int = 0) -> dict[str, int]:
    command = [sys.executable, "-c", WORKER, mode, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    told: dict[str, int] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_blocked_loop_that_leaks_stays_under_the_peak_of_a_stock_process():
    stock = worker("off")
    assert stock["grown"] > 100 << 20
    ours = worker("scheduled", limit=stock["peak"])
    assert ours["peak"] < stock["peak"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_a_limit_growth_is_bounded_too():
    assert worker("scheduled")["grown"] < 1_500 << 20
