"""What a metrics middleware adds to one request, in process: no server, no sockets, no client.

Contenders take turns, round after round, on the same event loop; the figure of a round is the mean time of
one request in it, and what is printed is the median over rounds and the spread between the quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from common import http_scope
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator, metrics
from starlette_exporter import PrometheusMiddleware

from asgi_mlperf import PerfMiddleware, Plugin, Settings

Request = Callable[[], Awaitable[None]]
Contender = Callable[[int], AbstractAsyncContextManager[FastAPI]]


def bare(routes: int) -> FastAPI:
    app = FastAPI()
    for number in range(routes - 1):
        app.get(f"/other/{number}")(hello)
    app.get("/items/{item_id}")(hello)
    return app


async def hello() -> dict[str, str]:
    return {"hello": "world"}


@asynccontextmanager
async def stock(routes: int) -> AsyncIterator[FastAPI]:
    yield bare(routes)


@asynccontextmanager
async def with_plugin(routes: int) -> AsyncIterator[FastAPI]:
    app = bare(routes)
    plugin = Plugin(Settings())
    app.add_middleware(PerfMiddleware, plugin=plugin)
    app.middleware_stack = app.build_middleware_stack()
    async with plugin.lifespan(app):
        yield app


@asynccontextmanager
async def with_instrumentator(routes: int) -> AsyncIterator[FastAPI]:
    app, registry = bare(routes), CollectorRegistry()
    Instrumentator(registry=registry).add(metrics.default(registry=registry)).instrument(app)
    yield app


@asynccontextmanager
async def with_exporter(routes: int) -> AsyncIterator[FastAPI]:
    app = bare(routes)
    app.add_middleware(PrometheusMiddleware)
    yield app


DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
PACKAGES = (
    "fastapi",
    "starlette",
    "prometheus-client",
    "prometheus-fastapi-instrumentator",
    "starlette-exporter",
)
CONTENDERS = {
    "bare route": stock,
    "asgi-mlperf": with_plugin,
    "prometheus-fastapi-instrumentator": with_instrumentator,
    "starlette-exporter": with_exporter,
}


SEVERAL = {"bare route": stock, "asgi-mlperf, metrics of several processes": with_plugin}


def request_of(app: FastAPI) -> Request:
    scope = http_scope("GET", "/items/1", (b"accept", b"*/*"))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(f"the app answered {message['status']}")

    async def request() -> None:
        await app(dict(scope), receive, send)

    return request


async def time_one(request: Request, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        await request()
    return (time.perf_counter() - started) / count * 1e6


async def measure(
    contenders: dict[str, Contender], routes: int, rounds: int, count: int
) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        requests = {
            name: request_of(await stack.enter_async_context(contender(routes)))
            for name, contender in contenders.items()
        }
        for request in requests.values():
            await time_one(request, count)
        taken: dict[str, list[float]] = {name: [] for name in requests}
        for _ in range(rounds):
            for name, request in requests.items():
                taken[name].append(await time_one(request, count))
    return taken


def table(taken: dict[str, list[float]], routes: int) -> str:
    base = statistics.median(taken["bare route"])
    lines = [
        f"{routes} routes, microseconds per request",
        "| contender | median | quartiles | added |",
        "|---|---|---|---|",
    ]
    for name, values in taken.items():
        low, middle, high = statistics.quantiles(values, n=4)
        lines.append(f"| {name} | {middle:.1f} | {low:.1f}-{high:.1f} | {middle - base:+.1f} |")
    return "\n".join(lines)


def again_with_files() -> NoReturn:
    """Run this script anew: prometheus-client decides when it is imported whether it writes files."""
    with tempfile.TemporaryDirectory() as directory:
        environ = {**os.environ, DIRECTORY: directory}
        raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=environ, check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--count", type=int, default=500, help="requests per contender and round")
    parser.add_argument("--routes", type=int, nargs="+", default=[10])
    parser.add_argument(
        "--several", action="store_true", help="measure only ourselves, with the metrics of several processes"
    )
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    if options.several and DIRECTORY not in os.environ:
        again_with_files()
    results = {}
    contenders = SEVERAL if options.several else CONTENDERS
    for routes in options.routes:
        results[routes] = asyncio.run(measure(contenders, routes, options.rounds, options.count))
        print(table(results[routes], routes), end="\n\n")
    versions = {package: version(package) for package in PACKAGES}
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "microseconds": results}, indent=1))


if __name__ == "__main__":
    main()
