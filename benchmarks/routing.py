"""What a FastAPI app takes to answer one request with an array, by its number of routes, in process.

Each ten routes are in a router of their own, and the one that is asked is the last. Contenders take turns,
round after round, on the same event loop; the figure of a round is the mean time of one request in it, and
what is printed is the median over rounds and the spread between the quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
from common import http_scope
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from numpy.typing import NDArray

from asgi_mlperf import PerfMiddleware, Plugin
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.routes import ORJSONRoute, parsed

PER_ROUTER = 10
BODY = b"[1.0,2.0,3.0,4.0]"


async def by_hand(request: Request) -> Response:
    rows = np.array(orjson.loads(await request.body()), np.float32)
    return Response(orjson.dumps(rows * 2, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def declared(rows: Annotated[NDArray[np.float32], parsed(ArrayBody(np.float32, "4"))]):  # noqa: ANN201
    return rows * 2


def app_of(routes: int, kind: type[APIRoute], endpoint: Callable[..., Any]) -> FastAPI:
    app = FastAPI()
    for first in range(0, routes, PER_ROUTER):
        router = APIRouter(route_class=kind, prefix=f"/{first}")
        for number in range(first, first + PER_ROUTER):
            router.post(f"/{number}")(endpoint)
        app.include_router(router)
    return app


@asynccontextmanager
async def stock(routes: int) -> AsyncIterator[FastAPI]:
    yield app_of(routes, APIRoute, by_hand)


@asynccontextmanager
async def short_way(routes: int) -> AsyncIterator[FastAPI]:
    yield app_of(routes, ORJSONRoute, declared)


@asynccontextmanager
async def direct_way(routes: int) -> AsyncIterator[FastAPI]:
    app = app_of(routes, ORJSONRoute, declared)
    plugin = Plugin()
    app.add_middleware(PerfMiddleware, plugin=plugin)
    app.middleware_stack = app.build_middleware_stack()
    async with plugin.lifespan(app):
        yield app


CONTENDERS: dict[str, Callable[[int], AbstractAsyncContextManager[FastAPI]]] = {
    "FastAPI, by hand": stock,
    "ORJSONRoute alone": short_way,
    "ORJSONRoute with the plugin": direct_way,
}


async def time_one(app: FastAPI, path: str, count: int) -> float:
    """Return the mean microseconds of a request."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = http_scope("POST", path, (b"content-type", b"application/json"))
    started = time.perf_counter()
    for _ in range(count):
        await app(dict(scope), receive, send)
    took = time.perf_counter() - started
    if {message["body"] for message in sent if "body" in message} != {b"[2.0,4.0,6.0,8.0]"}:
        raise RuntimeError(f"the app answered {sent[:2]}")
    return took / count * 1e6


async def measure(routes: int, rounds: int, count: int) -> dict[str, list[float]]:
    last = routes - 1
    path = f"/{last // PER_ROUTER * PER_ROUTER}/{last}"
    async with AsyncExitStack() as stack:
        apps = {name: await stack.enter_async_context(made(routes)) for name, made in CONTENDERS.items()}
        for app in apps.values():
            await time_one(app, path, count)
        taken: dict[str, list[float]] = {name: [] for name in apps}
        for _ in range(rounds):
            for name, app in apps.items():
                taken[name].append(await time_one(app, path, count))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--count", type=int, default=200, help="requests per contender and round")
    parser.add_argument("--routes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    results = {}
    print("| routes | contender | microseconds | quartiles |", "|---|---|---|---|", sep="\n")
    for routes in options.routes:
        results[routes] = asyncio.run(measure(routes, options.rounds, options.count))
        for name, values in results[routes].items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"| {routes} | {name} | {middle:.1f} | {low:.1f}-{high:.1f} |")
    versions = {package: version(package) for package in ("fastapi", "starlette", "numpy", "orjson")}
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "microseconds": results}, indent=1))


if __name__ == "__main__":
    main()
