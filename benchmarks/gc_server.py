"""One worker process per mode that serves ``gc_app.py``, and wrk to load it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = {"rec": 4, "io": 16, "sync": 8, "huge": 2, "tiny": 32, "leak": 4}
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
        with urllib.request.urlopen(self.url(path), timeout=90) as response:
            text: str = response.read().decode()
        return text

    def cpu_ms(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return 1000 * (int(fields[11]) + int(fields[12])) / TICKS

    def resident_mb(self) -> float:
        return float(json.loads(self.fetch("/memory"))["VmRSS"]) / 1024

    def peak_mb(self) -> float:
        return float(json.loads(self.fetch("/memory"))["VmHWM"]) / 1024

    def times(self) -> tuple[float, float]:
        """Return the seconds that collections took of requests, and that requests took."""
        metrics = self.fetch("/metrics")
        return sum(map(float, PAUSES.findall(metrics))), sum(map(float, DURATIONS.findall(metrics)))


@contextmanager
def served(mode: str, *, memory_limit_mb: float = 0) -> Iterator[Server]:
    """Serve the app in a process of its own until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "gc_app:app", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen(
        [*command, "--log-level", "warning"],
        cwd=Path(__file__).parent,
        env={**os.environ, "GC_BENCH_MODE": mode, "GC_BENCH_LIMIT_MB": str(int(memory_limit_mb))},
    )
    try:
        server = Server(process, port)
        wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        process.wait(60)


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
        [*command, url], check=True, capture_output=True, text=True, timeout=seconds + 120
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
