"""Arrays in and out of one FastAPI route, in process: no server, no sockets, no client.

Contenders take turns, round after round, on the same event loop; the figure of a round is the mean time of
one request in it, and what is printed is the median over rounds and the spread between the quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from common import http_scope
from fastapi import FastAPI, Request, Response
from safetensors.numpy import save
from wire_blocks import blocks, incoming, outgoing

from asgi_mlperf.wire import TensorResponse, json_numbers
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.routes import Array, ORJSONRoute

ARRAY = np.random.default_rng(0).random((512, 128), dtype="f4")
WIDE = np.random.default_rng(0).random((512, 256), dtype="f4")[:, ::2]
BFLOAT16 = torch.from_numpy(ARRAY).bfloat16()
SMALL = {"label": "cat", "score": 0.5, "n": 3}

Call = Callable[[], Awaitable[None]]


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, ARRAY)
    return file.getvalue()


def body_of(kind: str) -> bytes:
    return {
        "application/json": orjson.dumps(ARRAY, option=orjson.OPT_SERIALIZE_NUMPY),
        "application/x-npy": npy(),
        "application/octet-stream": ARRAY.tobytes(),
        "application/x-safetensors": save({"x": ARRAY}),
    }[kind]


def call(app: FastAPI, path: str, *, accept: str = "*/*", kind: str = "") -> Call:
    """One request, its body in chunks of 64 kB as servers hand them over."""
    body = body_of(kind) if kind else b""
    chunks = [body[at : at + 65_536] for at in range(0, len(body), 65_536)] or [b""]
    scope = http_scope(
        "POST",
        path,
        (b"accept", accept.encode()),
        (b"content-type", kind.encode() or b"application/json"),
        (b"content-length", str(len(body)).encode()),
    )

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(f"{path} answered {message['status']}")

    async def request() -> None:
        rest = iter(range(len(chunks)))

        async def receive() -> dict[str, Any]:
            at = next(rest)
            return {"type": "http.request", "body": chunks[at], "more_body": at + 1 < len(chunks)}

        await app(dict(scope), receive, send)

    return request


def responses() -> dict[str, dict[str, Call]]:
    stock, ours = FastAPI(), FastAPI()
    ours.router.route_class = ORJSONRoute

    @stock.post("/list")
    async def as_list() -> Any:
        return ARRAY.tolist()

    @stock.post("/untyped-list")
    async def as_untyped_list():  # type: ignore[no-untyped-def] # noqa: ANN202 - what is measured
        return ARRAY.tolist()

    @stock.post("/by-hand")
    async def by_hand() -> Response:
        return Response(orjson.dumps(ARRAY, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    @stock.post("/small")
    async def small_stock():  # type: ignore[no-untyped-def] # noqa: ANN202 - what is measured
        return SMALL

    @ours.post("/small")
    async def small_ours():  # type: ignore[no-untyped-def] # noqa: ANN202 - what is measured
        return SMALL

    for name, value in (("array", ARRAY), ("strided", WIDE), ("bfloat16", BFLOAT16)):
        ours.post(f"/{name}")(returning(value))

    @ours.post("/tensor")
    async def tensor() -> Response:
        return TensorResponse(ARRAY)

    return {
        "Response, 512 x 128 float32": {
            "FastAPI, `return a.tolist()`": call(stock, "/untyped-list"),
            "FastAPI, `a.tolist()` as `-> Any`": call(stock, "/list"),
            "by hand, `Response(orjson.dumps(a))`": call(stock, "/by-hand"),
            "ORJSONRoute, `return a`": call(ours, "/array"),
            "ORJSONRoute, strided": call(ours, "/strided"),
            "ORJSONRoute, bfloat16 tensor": call(ours, "/bfloat16"),
            **{
                f"TensorResponse, {kind}": call(ours, "/tensor", accept=f"application/{kind}")
                for kind in ("json", "x-npy", "octet-stream", "x-safetensors", "vnd.apache.arrow.stream")
            },
        },
        "Response, dict of three": {
            "FastAPI": call(stock, "/small"),
            "ORJSONRoute": call(ours, "/small"),
        },
    }


def returning(value: object) -> Callable[[], Awaitable[object]]:
    async def endpoint():  # type: ignore[no-untyped-def] # noqa: ANN202 - what is measured
        return value

    return endpoint


def without_simdjson(request: Call) -> Call:
    """The same as where it is not installed."""

    async def run() -> None:
        parser, json_numbers._parser = json_numbers._parser, lambda: None  # type: ignore[assignment] # noqa: SLF001
        try:
            await request()
        finally:
            json_numbers._parser = parser  # noqa: SLF001

    return run


def requests() -> dict[str, dict[str, Call]]:
    app, ours = FastAPI(), FastAPI()
    ours.router.route_class = ORJSONRoute
    done = Response()

    @app.post("/pydantic")
    async def pydantic(x: list[list[float]]) -> Response:
        np.array(x, dtype=np.float32)
        return done

    @app.post("/frombuffer")
    async def frombuffer(request: Request) -> Response:
        np.frombuffer(await request.body(), dtype=np.float32).reshape(512, 128)
        return done

    @app.post("/array")
    async def array(x: Array[np.float32, "n 128"]) -> Response:  # noqa: F722 - a shape
        assert x.shape == (512, 128)
        return done

    @ours.post("/array")
    async def array_short(x: Array[np.float32, "n 128"]):  # type: ignore[no-untyped-def] # noqa: ANN202, F722 - what is measured
        assert x.shape == (512, 128)
        return done

    @ours.post("/frombuffer")
    async def frombuffer_short(request: Request):  # type: ignore[no-untyped-def] # noqa: ANN202 - what is measured
        np.frombuffer(await request.body(), dtype=np.float32).reshape(512, 128)
        return done

    body = ArrayBody(np.float32, "n 128")

    @app.post("/direct")
    async def direct(request: Request) -> Response:
        assert (await body(request)).shape == (512, 128)
        return done

    kinds = ("json", "octet-stream", "x-npy", "x-safetensors")
    return {
        "Request, 512 x 128 float32": {
            "Pydantic `list[list[float]]`, `np.array`": call(app, "/pydantic", kind="application/json"),
            "by hand, `np.frombuffer(body)`": call(app, "/frombuffer", kind="application/octet-stream"),
            "by hand, ORJSONRoute": call(ours, "/frombuffer", kind="application/octet-stream"),
            **{f"Array, ORJSONRoute, {k}": call(ours, "/array", kind=f"application/{k}") for k in kinds},
            "Array, ORJSONRoute, json, without simdjson": without_simdjson(
                call(ours, "/array", kind="application/json")
            ),
            **{f"Array, {kind}": call(app, "/array", kind=f"application/{kind}") for kind in kinds},
            **{f"ArrayBody(request), {k}": call(app, "/direct", kind=f"application/{k}") for k in kinds[:3]},
        }
    }


async def time_one(request: Call, seconds: float) -> float:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        await request()
        count += 1
    return (time.perf_counter() - started) / count * 1e6


async def measure(contenders: dict[str, Call], rounds: int, seconds: float) -> dict[str, list[float]]:
    for request in contenders.values():
        await time_one(request, seconds)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, request in contenders.items():
            taken[name].append(await time_one(request, seconds))
    return taken


def table(title: str, unit: str, taken: dict[str, list[float]]) -> str:
    base = statistics.median(next(iter(taken.values())))
    lines = [
        f"{title}, {unit}",
        "| contender | median | quartiles | first is times this |",
        "|---|---|---|---|",
    ]
    for name, values in taken.items():
        low, middle, high = statistics.quantiles(values, n=4)
        lines.append(f"| {name} | {middle:.1f} | {low:.1f}-{high:.1f} | {base / middle:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="per contender and round")
    parser.add_argument("--blocks", type=int, default=4, help="rounds of 100 MB each")
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    results = {}
    for title, contenders in (responses() | requests()).items():
        results[title] = asyncio.run(measure(contenders, options.rounds, options.seconds))
        print(table(title, "microseconds per request", results[title]), end="\n\n")
    for way, contenders in (("out", outgoing()), ("in", incoming())) if options.blocks else ():
        title = f"Longest block of the event loop, about 100 MB {way}"
        results[title] = asyncio.run(blocks(contenders, options.blocks))
        print(table(title, "milliseconds", results[title]), end="\n\n")
    versions = {
        name: version(name)
        for name in ("fastapi", "starlette", "orjson", "pysimdjson", "numpy", "torch", "pydantic")
    }
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "rounds": results}, indent=1))


if __name__ == "__main__":
    main()
