"""The small app that the tests serve: with the plugin, or without it if SERVED_STOCK is set.

What happens in it is sent to the test as one datagram each; where it must wait, it waits at the test's gate.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_mlperf import ClientLeft, ORJSONResponse, Plugin

if library := os.environ.get("SERVED_LIBRARY"):
    importlib.import_module(library)

plugin = None if os.environ.get("SERVED_STOCK") else Plugin()
run: Any = plugin.run if plugin else run_in_threadpool

Gauge("served_pid", "Which process answers.", multiprocess_mode="mostrecent").set(os.getpid())


def report(event: str, **facts: Any) -> None:
    line = json.dumps({"event": event, "pid": os.getpid(), **facts}).encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reports:
        reports.sendto(line, ("127.0.0.1", int(os.environ["SERVED_REPORTS"])))


def wait_at_gate(name: str) -> str:
    with socket.create_connection(("127.0.0.1", int(os.environ["SERVED_GATE"]))) as gate:
        gate.sendall(name.encode())
        gate.recv(1)
    return f"{name} went through"


def double(number: int) -> int:
    return number * 2


def triple_all(numbers: list[int]) -> list[int]:
    return [number * 3 for number in numbers]


async def triple_alone(number: int) -> int:
    return triple_all([number])[0]


triple: Any = plugin.batched(triple_all, cost=float, max_cost=1e9) if plugin else triple_alone


def closed() -> str | None:
    """Say why the app wants no traffic: what stands in a file of the test."""
    return Path("closed").read_text() if Path("closed").exists() else None


if plugin:
    plugin.check(closed)


async def answer_pid(request: Request) -> JSONResponse:
    return JSONResponse({"pid": os.getpid()})


async def answer_process(request: Request) -> JSONResponse:
    return JSONResponse(
        {
            "gc thresholds": gc.get_threshold(),
            "gc callbacks": [getattr(callback, "__qualname__", None) for callback in gc.callbacks],
            "gc frozen": gc.get_freeze_count() > 1_000,
            "Thread.run": threading.Thread.run.__qualname__,
            "SIGTERM": getattr(signal.getsignal(signal.SIGTERM), "__qualname__", None),
        }
    )


async def answer_double(request: Request) -> JSONResponse:
    return JSONResponse(await run(double, int(request.query_params["number"])))


async def answer_triple(request: Request) -> JSONResponse:
    return JSONResponse(await triple(int(request.query_params["number"])))


async def answer_gated(request: Request) -> JSONResponse:
    before = await readiness()
    result = await run(wait_at_gate, request.query_params["name"])
    after = await readiness()
    return JSONResponse({"result": result, "readiness": [before, after]})


async def answer_hurried(request: Request) -> JSONResponse:
    return JSONResponse(await run(time.sleep, 0.05, timeout=0.01))


async def answer_later(request: Request) -> JSONResponse:
    return JSONResponse(None, background=BackgroundTask(asyncio.sleep, 0.002))


async def answer_encoded(request: Request) -> ORJSONResponse:
    return ORJSONResponse([1.0, 2.0])


async def answer_collecting(request: Request) -> JSONResponse:
    return JSONResponse(gc.collect() >= 0)


async def answer_in_parts(request: Request) -> StreamingResponse:
    return StreamingResponse(iter((b"first", b"last")), media_type="text/plain")


async def answer_blocking(request: Request) -> JSONResponse:
    return JSONResponse(wait_at_gate("on the event loop"))


async def answer_left(request: Request) -> JSONResponse:
    """Call a function, then read what comes until the client has left."""
    with suppress(ClientLeft):  # with the plugin the call may end first: nobody waits for its result
        await run(wait_at_gate, request.query_params["name"])
    kinds = []
    while "http.disconnect" not in kinds:
        kinds.append((await request.receive())["type"])
    report("handler ended", received=kinds)
    return JSONResponse(None)


async def readiness() -> int:
    """Ask the whole app, in process: a server that stops takes no new connections."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/readyz",
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    return statuses[0]


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(chunks(), media_type="text/plain")


async def chunks() -> AsyncIterator[bytes]:
    try:
        yield b"first"
        report("stream waits")
        await asyncio.Event().wait()
    except BaseException as error:
        report("stream ended", error=type(error).__name__)
        raise


async def events(request: Request) -> StreamingResponse:
    return StreamingResponse(ticks(), media_type="text/event-stream")


async def ticks() -> AsyncIterator[bytes]:
    try:
        while True:
            yield b"data: tick\n\n"
            await asyncio.sleep(0.01)
    except BaseException as error:
        report("events ended", error=type(error).__name__)
        raise


async def stream_of_a_model(request: Request) -> StreamingResponse:
    return StreamingResponse(model_chunks(request.query_params["name"]), media_type="text/plain")


async def model_chunks(name: str) -> AsyncIterator[bytes]:
    yield b"first"
    report("model stream waits")
    try:
        yield (await run(wait_at_gate, name)).encode()
    except BaseException as error:
        report("model stream ended", error=type(error).__name__)
        raise


async def fail_early(request: Request) -> JSONResponse:
    raise LookupError("before the response started")


async def fail_late(request: Request) -> StreamingResponse:
    return StreamingResponse(broken_chunks(), media_type="text/plain")


async def broken_chunks() -> AsyncIterator[bytes]:
    yield b"first"
    raise LookupError("after the response started")


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """Say every message that comes, and what sending after the client left leads to."""
    if scope["type"] != "http":
        return
    while True:
        message = await receive()
        report("received", kind=message["type"])
        if message["type"] == "http.disconnect":
            break
    try:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"too late"})
    except BaseException as error:
        report("sent", error=type(error).__name__)
        raise
    report("sent", error=None)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as error:
        report("websocket left", code=error.code)


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, str]]:
    report("startup")
    yield {"model": "loaded"}
    for _ in range(50):
        await asyncio.sleep(0)  # the last steps of requests that the server has cancelled
    report("shutdown")


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/pid", answer_pid),
        Route("/process", answer_process),
        Route("/double", answer_double),
        Route("/triple", answer_triple),
        Route("/gated", answer_gated),
        Route("/blocking", answer_blocking),
        Route("/hurried", answer_hurried),
        Route("/later", answer_later),
        Route("/parts", answer_in_parts),
        Route("/collecting", answer_collecting),
        Route("/encoded", answer_encoded),
        Route("/left", answer_left),
        Route("/stream", stream),
        Route("/events", events),
        Route("/model-stream", stream_of_a_model),
        Route("/fail-early", fail_early),
        Route("/fail-late", fail_late),
        Mount("/bare", app=bare),
        WebSocketRoute("/echo", echo),
    ],
)
if plugin:
    plugin.install(app)
