"""What native thread caps do to a served model: several workers, one caller alone, and the cost of a call.

Contenders serve the same app at the same time and take turns under the load of wrk, round after round, on
127.0.0.1. Ratios are taken within a round; what is printed is the median over rounds and the least and most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import timeit
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import free_port, markdown, require_wrk, spread, wrk

from asgi_mlperf.host.environment import COUNTS
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.widths import Widths

HERE = Path(__file__).parent
UVICORN = [sys.executable, "-m", "uvicorn"]
CONTENDERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "stock": (UVICORN, {"ASGI_MLPERF_ENABLED": "false"}),
    "stock, OMP_NUM_THREADS=1": (UVICORN, {"ASGI_MLPERF_ENABLED": "false", "OMP_NUM_THREADS": "1"}),
    "asgi-mlperf": (UVICORN, {}),
    "asgi-mlperf run": ([sys.executable, "-m", "asgi_mlperf", "run", "--"], {}),
}
Figures = dict[str, dict[str, list[float]]]
"""Requests per second of every round, by path and contender."""


@contextmanager
def served(name: str, workers: int) -> Iterator[int]:
    command, variables = CONTENDERS[name]
    port = free_port()
    inherited = {key: text for key, text in os.environ.items() if key not in COUNTS}
    server = subprocess.Popen(
        [*command, "threads_app:app", "--port", str(port), "--workers", str(workers), "--no-access-log"],
        cwd=HERE,
        env={**inherited, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait(60)


def wait_for(port: int) -> None:
    give_up = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/def/mm256", timeout=5).close()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
        else:
            return


def requests_per_s(port: int, path: str, connections: int, seconds: int) -> float:
    figures = wrk(f"http://127.0.0.1:{port}{path}", connections, seconds)
    if figures["failed"]:
        raise RuntimeError(f"{path} did not answer 200 in {figures['failed']:.0f} cases")
    return figures["requests/s"]


def measure(
    contenders: Sequence[str],
    paths: Sequence[str],
    *,
    workers: int,
    connections: int,
    rounds: int,
    seconds: int,
) -> Figures:
    figures: Figures = {path: {name: [] for name in contenders} for path in paths}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(served(name, workers)) for name in contenders}
        for port in ports.values():
            for path in paths:
                requests_per_s(port, path, connections, 1)
        for turn in range(rounds):
            for path in paths:
                order = list(ports) if turn % 2 == 0 else list(reversed(ports))
                for name in order:
                    figures[path][name].append(requests_per_s(ports[name], path, connections, seconds))
    return figures


def table(title: str, figures: Figures, bases: Sequence[str]) -> str:
    rows = []
    for path, taken in figures.items():
        for name, values in taken.items():
            ratios = (
                spread([one / other for one, other in zip(values, taken[base], strict=True)], ".2f")
                for base in bases
            )
            rows.append([path, name, spread(values, ".1f"), *ratios])
    head = ["request", "contender", "requests/s", *(f"ratio to {base}" for base in bases)]
    return f"{title}\n\n{markdown(head, rows)}"


def call_cost_us() -> dict[str, list[float]]:
    """Microseconds that keeping a thread capped adds to a call, and to a request on the event loop."""
    import torch  # noqa: PLC0415 - its count is asked for at the end of every call

    torch.get_num_threads()
    caps = NativeThreadCaps(Widths(2, 1, 1), interop=1)
    caps.refresh()
    caps.begin_on_loop()

    def call() -> None:
        caps.begin()
        caps.end()

    count = 20_000
    taken = {
        name: [best / count * 1e6 for best in timeit.repeat(func, number=count, repeat=9)]
        for name, func in (("a call in a thread", call), ("a request on the event loop", caps.begin_on_loop))
    }
    caps.restore()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=int, default=2, help="of load, for each contender, request and round"
    )
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    require_wrk()
    results: dict[str, object] = {"cpus": len(os.sched_getaffinity(0)), "seconds": options.seconds}
    cost = results["call cost, microseconds"] = call_cost_us()
    print(
        "keeping caps costs, in microseconds: "
        + ", ".join(f"{name} {spread(taken, '.2f')}" for name, taken in cost.items())
    )
    several = [f"/def/{model}" for model in ("mm1000", "mm256", "conv")]
    for workers in options.workers:
        figures = measure(
            list(CONTENDERS),
            several,
            workers=workers,
            connections=8,
            rounds=options.rounds,
            seconds=options.seconds,
        )
        results[f"{workers} workers"] = figures
        title = f"\n{workers} workers, 8 connections"
        print(table(title, figures, ["stock", "stock, OMP_NUM_THREADS=1"]), flush=True)
    alone = [f"/{way}/{model}" for way in ("def", "async", "run") for model in ("mm1000", "conv")]
    figures = measure(
        ["stock", "asgi-mlperf", "asgi-mlperf run"],
        alone,
        workers=1,
        connections=1,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    results["one worker, one connection"] = figures
    print(table("\none worker, one request at a time", figures, ["stock"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
