"""One worker process per mode that serves ``gc_app.py``, and wrk to load it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import common
from common import Figures, free_port, wrk

CONNECTIONS = {"rec": 4, "io": 16, "sync": 8, "huge": 2, "tiny": 32, "leak": 4}
PAUSES = re.compile(r'^asgi_mlperf_gc_pause_seconds_sum\{.*where="request".*\} (\S+)$', re.MULTILINE)
DURATIONS = re.compile(r"^http_server_request_duration_seconds_sum\{.*\} (\S+)$", re.MULTILINE)


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
        return common.cpu_ms([self.process.pid])

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
    port = free_port()
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
    figures = wrk(server.url(f"/{shape}"), CONNECTIONS[shape], seconds)
    if figures["failed"]:
        sys.exit(f"/{shape} failed under load: {figures['failed']:.0f} answers were not 200")
    return figures
