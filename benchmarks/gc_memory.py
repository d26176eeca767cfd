"""What the schedule does to memory: after many requests, over minutes, and when a handler leaks.

``requests`` compares resident memory with stock after as many requests. ``soak`` samples it under mixed
load and fits a line. ``leak`` finds the peak of a stock process whose handler leaks cycles of 1 MB, at full
load and with a blocked event loop, then gives the schedule that peak as its memory limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from common import require_wrk
from gc_server import Server, load, served

OURS, STOCK = "asgi-mlperf", "stock"
SHAPES = ("rec", "io", "sync")

Result = dict[str, float]


def requests(options: argparse.Namespace) -> Result:
    result = {}
    for mode in (STOCK, OURS):
        with served(mode) as server:
            load(server, options.shapes[0], 1)
            result[f"{mode}, MB at start"] = server.resident_mb()
            sent = 0.0
            while sent < options.count:
                for shape in options.shapes:
                    sent += load(server, shape, 10)["requests"]
            result[f"{mode}, MB after {sent:,.0f} requests"] = server.resident_mb()
    return result


def soak(options: argparse.Namespace) -> Result:
    samples: list[tuple[float, float]] = []
    with served(OURS) as server:
        for shape in options.shapes:
            load(server, shape, 5)
        began = time.monotonic()
        while (now := time.monotonic() - began) < options.seconds:
            samples.append((now / 60, server.resident_mb()))
            load(server, options.shapes[len(samples) % len(options.shapes)], 3)
    half = samples[len(samples) // 2 :]
    return {
        "samples": len(samples),
        "lowest MB": min(rss for _, rss in samples),
        "highest MB": max(rss for _, rss in samples),
        "slope, MB/minute": statistics.linear_regression(*zip(*samples, strict=True)).slope,
        "slope of the second half, MB/minute": statistics.linear_regression(*zip(*half, strict=True)).slope,
    }


def leak(options: argparse.Namespace) -> Result:
    result = {}
    for name, attack in {"full load": at_full_load, "blocked loop": with_blocked_loop}.items():
        limit = 0.0
        for mode in (STOCK, OURS):
            with served(mode, memory_limit_mb=limit) as server:
                load(server, "rec", 1)
                result[f"{name}, {mode}: MB leaked per second"] = attack(server, options.seconds)
                limit = result[f"{name}, {mode}: peak MB"] = server.peak_mb()
    return result


def at_full_load(server: Server, seconds: float) -> float:
    return load(server, "leak", seconds)["requests/s"]


def with_blocked_loop(server: Server, seconds: float) -> float:
    return float(json.loads(server.fetch(f"/block?seconds={seconds}"))["leaked"]) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("requests", "soak", "leak"))
    parser.add_argument("--count", type=int, default=100_000, help="requests")
    parser.add_argument("--seconds", type=float, help="of load; default 600 for soak, 30 for leak")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    options.seconds = options.seconds or {"soak": 600.0}.get(options.what, 30.0)
    require_wrk()
    result = {"requests": requests, "soak": soak, "leak": leak}[options.what](options)
    for name, value in result.items():
        print(f"{name}: {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
