"""What the benchmarks share: load from wrk, the processes of a server and what they use, tables."""

from __future__ import annotations

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
TICKS = os.sysconf("SC_CLK_TCK")

Figures = dict[str, float]


def http_scope(method: str, path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """What a server would say of a request, for apps that are called in process."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("this benchmark loads servers with wrk; on Debian or Ubuntu: apt install wrk")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wrk(url: str, connections: int, seconds: float, *script: str) -> Figures:
    """Load ``url`` and return what wrk counted; ``script`` is a Lua file and its arguments."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "30s"]
    lua = ["-s", script[0], url, "--", *script[1:]] if script else [url]
    output = subprocess.run(
        [*command, *lua], check=True, capture_output=True, text=True, timeout=seconds + 120
    ).stdout
    return {
        "requests/s": float(re.findall(r"Requests/sec:\s+(\S+)", output)[0]),
        "requests": float(re.findall(r"(\d+) requests in", output)[0]),
        "failed": float(sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", output)))),
        "socket errors": float(sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", output)))),
        "p50 ms": _latency(output, 50),
        "p99 ms": _latency(output, 99),
    }


def _latency(output: str, percentile: int) -> float:
    number, unit = re.findall(rf"\s{percentile}%\s+([\d.]+)(\w+)", output)[0]
    return float(number) * MILLISECONDS[unit]


def cpu_ms(pids: Iterable[int]) -> float:
    """Return the CPU time that the processes have used; one that is gone counts nothing."""
    return sum(map(_cpu_ms, pids))


def _cpu_ms(pid: int) -> float:
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return 1000 * (int(fields[11]) + int(fields[12])) / TICKS


def family(pid: int) -> list[int]:
    """Return the process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
            except OSError:
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def spread(values: Sequence[float], form: str) -> str:
    """Return the median and the range of the values, each in ``form``."""
    low, middle, high = (format(one, form) for one in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"  # noqa: RUF001 - a range


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
