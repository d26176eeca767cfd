"""How long the event loop is away while one heavy body goes out or comes in, in every format.

A task asks for a turn every millisecond; the figure is how late the latest one came. Two controls tell what
the machine adds: two seconds in which nothing runs, and a thread that works without holding the interpreter.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from safetensors.numpy import save
from starlette.requests import Request
from starlette.responses import Response

from asgi_mlperf.exceptions import BodyRefused
from asgi_mlperf.wire import JSONSettings, ORJSONResponse, TensorResponse, json_settings
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.tables import TableBody

CHUNK_BYTES = 65_536
ARROW = "application/vnd.apache.arrow.stream"
ROWS = 80_000
TABLE_ROWS = 2_000_000


def whole(content: Any) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def longest_block(busy: Callable[[], Any]) -> float:
    """Milliseconds that the event loop was away for at most, while ``busy`` ran."""
    away, running = [0.0], True

    async def watch() -> None:
        while running:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            away.append(time.perf_counter() - started - 0.001)

    gc.collect()
    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.02)
    kept = await busy()  # giving it back is the handler's: 100 MB that are not in huge pages take 8 ms
    running = False
    await watching
    del kept
    return max(away) * 1e3


def sent(make: Callable[[], Response], accept: str = "*/*") -> Callable[[], Any]:
    async def send(_message: Any) -> None:
        await asyncio.sleep(0)

    async def never() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "headers": [(b"accept", accept.encode())]}
    return lambda: make()(scope, never, send)


def read(parser: Any, body: bytes, kind: str) -> Callable[[], Any]:
    scope = {
        "type": "http",
        "headers": [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())],
    }

    def request() -> Any:
        rest = iter(range(0, len(body), CHUNK_BYTES))

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            at = next(rest)
            more = at + CHUNK_BYTES < len(body)
            return {"type": "http.request", "body": body[at : at + CHUNK_BYTES], "more_body": more}

        return parser(Request(scope, receive))

    return request


async def nothing() -> None:
    await asyncio.sleep(2)


def thread_without_interpreter() -> Callable[[], Any]:
    data = bytes(400_000_000)
    return lambda: asyncio.to_thread(lambda: hashlib.sha256(data).digest())


def outgoing() -> dict[str, Callable[[], Any]]:
    array = np.random.default_rng(0).random((ROWS, 128), dtype="f4")
    binary = np.random.default_rng(0).random((200_000, 128), dtype="f4")
    strided = np.random.default_rng(0).random((200_000, 256), dtype="f4")[:, ::2]
    lists = array.tolist()
    kinds = ("x-npy", "octet-stream", "x-safetensors", "vnd.apache.arrow.stream")
    return {
        "control: nothing": nothing,
        "control: a thread without the interpreter": thread_without_interpreter(),
        "by hand, `Response(orjson.dumps(a))`": sent(lambda: whole(array)),
        "ORJSONResponse": sent(lambda: ORJSONResponse(array)),
        "ORJSONResponse, lists": sent(lambda: ORJSONResponse(lists)),
        **{
            f"TensorResponse, {kind}": sent(lambda: TensorResponse(binary), f"application/{kind}")
            for kind in kinds
        },
        **{
            f"TensorResponse, {kind}, strided": sent(lambda: TensorResponse(strided), f"application/{kind}")
            for kind in kinds
        },
    }


def arrow(columns: dict[str, Any]) -> bytes:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def json_text(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def incoming() -> dict[str, Callable[[], Any]]:
    chance = np.random.default_rng(0)
    floats = chance.random((ROWS, 128), dtype="f4")
    integers = chance.integers(0, 10**8, (ROWS, 128))
    binary = chance.random((200_000, 128), dtype="f4")
    ages, scores = chance.integers(0, 99, TABLE_ROWS), chance.random(TABLE_ROWS)
    cities = [f"city {age}" for age in ages.tolist()]
    table = {"age": ages.tolist(), "score": scores.tolist(), "city": cities}
    records = [
        {"age": a, "score": s, "city": c}
        for a, s, c in zip(table["age"], table["score"], cities, strict=True)
    ]
    array, columns = ArrayBody("f4"), TableBody({"age": "i8", "score": "f4", "city": str})
    bad = json_text(floats)[:-2] + b',"x"]]'
    return {
        "control: nothing": nothing,
        "control: a thread without the interpreter": thread_without_interpreter(),
        "floats, JSON": read(array, json_text(floats), "application/json"),
        "floats, JSON, 3 axes": read(array, json_text(floats.reshape(-1, 8, 16)), "application/json"),
        "integers, JSON": read(ArrayBody("i8"), json_text(integers), "application/json"),
        "floats with an error at the end": read(refusing(array), bad, "application/json"),
        "npy": read(array, npy(binary), "application/x-npy"),
        "npy, float64": read(array, npy(binary.astype("f8")), "application/x-npy"),
        "raw": read(ArrayBody("f4", "n 128"), binary.tobytes(), "application/octet-stream"),
        "safetensors": read(array, save({"x": binary}), "application/x-safetensors"),
        "Arrow": read(array, arrow({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(binary)}), ARROW),
        "table, columns": read(columns, json_text(table), "application/json"),
        "table, records": read(columns, json_text(records), "application/json"),
        "table, Arrow": read(columns, arrow({"age": ages, "score": scores, "city": pa.array(cities)}), ARROW),
    }


def refusing(parser: Any) -> Any:
    async def refused(request: Request) -> None:
        with suppress(BodyRefused):
            await parser(request)

    return refused


async def blocks(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    json_settings.set(JSONSettings(body_limit_bytes=10**9))
    gc.collect()
    gc.freeze()  # what the contenders hold is the clients', and the plugin would have frozen it too
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, busy in contenders.items():
            taken[name].append(await longest_block(busy))
    return taken
