"""What each way to run the garbage collector costs a server, side by side, under load.

One uvicorn worker per mode serves ``gc_app.py``; all of them stay up, and wrk loads one at a time. Modes
alternate within a round; printed are the median over rounds and the spread from lowest to highest. The CPU
time of a request suffers least from what else the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

MODES = ("stock", "freeze only", "raised thresholds", "gc.disable()", "asgi-mlperf")
OURS, STOCK, DISABLED = "asgi-mlperf", "stock", "gc.disable()"
CONNECTIONS = {"rec": 4, "io": 16, "sync": 8, "huge": 2, "tiny": 32}
SHAPES = {
    "rec": "5,000 objects, never awaits, 4 connections",
    "io": "5,000 objects, awaits 5 ms while holding them, 16 connections",
    "sync": "5,000 objects in a `def` endpoint, 8 connections",
    "huge": "200,000 objects, 2 connections",
    "tiny": "no objects, 32 connections",
}
FIRST_PORT = 8765
TICKS = os.sysconf("SC_CLK_TCK")
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
PAUSES = re.compile(r'^asgi_mlperf_gc_pause_seconds_sum\{.*where="request".*\} (\S+)$', re.MULTILINE)
DURATIONS = re.compile(r"^http_server_request_duration_seconds_sum\{.*\} (\S+)$", re.MULTILINE)

Figures = dict[str, float]


@dataclass(frozen=True)
class Server:
    """One mode's worker process."""

    process: subprocess.Popen[bytes]
    port: int

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def fetch(self, path: str) -> str:
        with urllib.request.urlopen(self.url(path), timeout=30) as response:
            text: str = response.read().decode()
        return text

    def cpu_ms(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return 1000 * (int(fields[11]) + int(fields[12])) / TICKS

    def resident_mb(self) -> float:
        return float(json.loads(self.fetch("/memory"))["VmRSS"]) / 1024

    def times(self) -> tuple[float, float]:
        """Return the seconds that collections took of requests, and that requests took."""
        metrics = self.fetch("/metrics")
        return sum(map(float, PAUSES.findall(metrics))), sum(map(float, DURATIONS.findall(metrics)))


@contextmanager
def served(mode: str, port: int) -> Iterator[Server]:
    """Serve the app in a process of its own until the block ends."""
    command = [sys.executable, "-m", "uvicorn", "gc_app:app", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen(
        [*command, "--log-level", "warning"],
        cwd=Path(__file__).parent,
        env={**os.environ, "GC_BENCH_MODE": mode},
    )
    try:
        server = Server(process, port)
        wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(server: Server) -> None:
    for _ in range(600):
        if server.process.poll() is not None:
            sys.exit(f"the server stopped with status {server.process.returncode}; its message stands above")
        try:
            server.fetch("/readyz")
        except OSError:
            time.sleep(0.1)
        else:
            return
    sys.exit("the server did not become ready within a minute")


def load(server: Server, shape: str, seconds: float) -> Figures:
    """Load one shape with wrk and return its figures."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS[shape]}", f"-d{seconds:g}s", "--latency", "--timeout", "30s"]
    url = server.url(f"/{shape}")
    output = subprocess.run(
        [*command, url], check=True, capture_output=True, text=True, timeout=seconds + 60
    ).stdout
    if "Non-2xx" in output:
        sys.exit(f"/{shape} failed under load:\n{output}")
    return {
        "requests/s": float(re.findall(r"Requests/sec:\s+(\S+)", output)[0]),
        "requests": float(re.findall(r"(\d+) requests in", output)[0]),
        "p50 ms": latency(output, 50),
        "p99 ms": latency(output, 99),
    }


def latency(output: str, percentile: int) -> float:
    number, unit = re.findall(rf"\s{percentile}%\s+([\d.]+)(\w+)", output)[0]
    return float(number) * MILLISECONDS[unit]


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
        ports = itertools.count(FIRST_PORT)
        servers = {mode: stack.enter_context(served(mode, next(ports))) for mode in options.modes}
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
    lines = ["| mode | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for mode, rounds in modes.items():
        cells = (cell([figures[name] for figures in rounds]) for name in names)
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"  # noqa: RUF001 - a range


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
    lines = ["| shape | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [
        f"| /{shape} | " + " | ".join(f"{row[name]:.3g}" for name in names) + " |"
        for shape, row in rows.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="load per shape, mode and round")
    parser.add_argument("--shapes", nargs="+", choices=CONNECTIONS, default=list(CONNECTIONS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, default=Path("gc.json"), help="every round's figures go here")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("gc.py loads the server with wrk; on Debian or Ubuntu: apt install wrk")
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
