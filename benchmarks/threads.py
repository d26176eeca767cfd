"""What native thread caps do to a served model: several workers, one caller alone, and the cost of a call.

Contenders serve the same app at the same time and take turns, round after round, on 127.0.0.1: several
workers under the load of wrk, one worker under a client that waits for each response. Ratios are taken within
a round. In each table one contender is there twice: its ratio to itself is what chance makes of 1. Where a
process's heaps happen to end decides how fast it is for as long as it lives, so several workers are started
anew a few times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import timeit
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

from common import free_port, markdown, require_wrk, spread, wrk

from asgi_mlperf.host.environment import COUNTS
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.widths import Widths

HERE = Path(__file__).parent
UVICORN = [sys.executable, "-m", "uvicorn"]
STOCK = {"ASGI_MLPERF_ENABLED": "false"}
ONE_EACH = STOCK | {"OMP_NUM_THREADS": "1"}
CONTENDERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "stock": (UVICORN, STOCK),
    "stock again": (UVICORN, STOCK),
    "OMP_NUM_THREADS=1": (UVICORN, ONE_EACH),
    "OMP_NUM_THREADS=1 again": (UVICORN, ONE_EACH),
    "asgi-mlperf": (UVICORN, {}),
    "asgi-mlperf run": ([sys.executable, "-m", "asgi_mlperf", "run", "--"], {}),
}
SEVERAL = ["OMP_NUM_THREADS=1", "OMP_NUM_THREADS=1 again", "asgi-mlperf", "asgi-mlperf run", "stock"]
ALONE = ["stock", "stock again", "asgi-mlperf", "asgi-mlperf run"]
MODELS = ("mm1000", "mm256", "conv")
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
            urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5).close()
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
    starts: int,
    rounds: int,
    seconds: int,
) -> Figures:
    figures: Figures = {path: {name: [] for name in contenders} for path in paths}
    for _ in range(starts):
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


def measure_alone(path: str, *, rounds: int, requests: int) -> Figures:
    """Measure in servers of their own: OpenMP waits differently once another thread has run an op."""
    taken: dict[str, list[float]] = {name: [] for name in ALONE}
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(
                closing(HTTPConnection("127.0.0.1", stack.enter_context(served(name, 1)), timeout=60))
            )
            for name in ALONE
        }
        for client in clients.values():
            requests_per_s_alone(client, path, requests)
        for _ in range(rounds):
            for name in random.sample(ALONE, len(ALONE)):
                requests_per_s_alone(clients[name], path, 2)
                taken[name].append(requests_per_s_alone(clients[name], path, requests))
    return {path: taken}


def requests_per_s_alone(client: HTTPConnection, path: str, requests: int) -> float:
    began = time.perf_counter()
    for _ in range(requests):
        client.request("GET", path)
        with client.getresponse() as response:
            response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}")
    return requests / (time.perf_counter() - began)


def table(title: str, figures: Figures, bases: Sequence[str]) -> str:
    rows = []
    for path, taken in figures.items():
        for name, values in taken.items():
            ratios = (
                middle_half([one / other for one, other in zip(values, taken[base], strict=True)], ".3f")
                for base in bases
            )
            rows.append([path, name, middle_half(values, ".1f"), *ratios])
    head = ["request", "contender", "requests/s", *(f"ratio to {base}" for base in bases)]
    return f"{title}: medians, and the middle half of the rounds\n\n{markdown(head, rows)}"


def middle_half(values: Sequence[float], form: str) -> str:
    low, middle, high = (format(one, form) for one in statistics.quantiles(values, n=4, method="inclusive"))
    return f"{middle} ({low}–{high})"  # noqa: RUF001 - a range


def call_cost_us() -> dict[str, list[float]]:
    """Microseconds that keeping a thread capped adds to a call, and to a request on the event loop."""
    import torch  # noqa: PLC0415 - its count is asked for at the end of every call

    torch.get_num_threads()
    caps = NativeThreadCaps(Widths(2, 1, 1), interop=1)
    caps.refresh()
    caps.begin_on_loop()

    def call() -> None:
        caps.call(int)

    count = 20_000
    taken = {
        name: [best / count * 1e6 for best in timeit.repeat(func, number=count, repeat=9)]
        for name, func in (("a call in a thread", call), ("a request on the event loop", caps.begin_on_loop))
    }
    caps.restore()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4], help="none: leave that table out")
    parser.add_argument("--models", choices=MODELS, nargs="*", default=MODELS, help="of that table")
    parser.add_argument("--starts", type=int, default=4, help="of new servers, for that table")
    parser.add_argument("--rounds", type=int, default=4, help="with each of them, at least 2")
    parser.add_argument(
        "--seconds", type=int, default=2, help="of load, for each contender, request and round"
    )
    ways = [f"{way}/{model}" for way in ("def", "async", "run") for model in ("mm1000", "conv")]
    parser.add_argument("--alone", choices=ways, nargs="*", default=ways, help="requests, one at a time")
    parser.add_argument("--alone-rounds", type=int, default=40, help="at least 2")
    parser.add_argument("--alone-requests", type=int, default=25, help="for each contender and round")
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    require_wrk()
    results: dict[str, object] = {"cpus": len(os.sched_getaffinity(0)), "seconds": options.seconds}
    cost = results["call cost, microseconds"] = call_cost_us()
    print(
        "keeping caps costs, in microseconds: "
        + ", ".join(f"{name} {spread(taken, '.2f')}" for name, taken in cost.items())
    )
    for workers in options.workers:
        figures = measure(
            SEVERAL,
            [f"/def/{model}" for model in options.models],
            workers=workers,
            connections=8,
            starts=options.starts,
            rounds=options.rounds,
            seconds=options.seconds,
        )
        results[f"{workers} workers"] = figures
        title = f"\n{workers} workers, 8 connections"
        print(table(title, figures, ["OMP_NUM_THREADS=1", "stock"]), flush=True)
    for way in options.alone:
        figures = measure_alone(f"/{way}", rounds=options.alone_rounds, requests=options.alone_requests)
        results[f"one worker, one request at a time: {way}"] = figures
        print(table("\none worker, one request at a time", figures, ["stock"]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
