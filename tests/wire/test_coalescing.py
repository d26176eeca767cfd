from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from tests.support import until
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from asgi_mlperf.wire import coalescing
from asgi_mlperf.wire.coalescing import COALESCED_BYTES, CoalescingProtocol, can_hold

LAST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
KEPT = b"GET /kept HTTP/1.1\r\nhost: x\r\n\r\n"


class Recorded:
    """A transport, and what is written to it."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: Any) -> None:
        if data:
            self._writes.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Served:
    """An app under one of uvicorn's protocols."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writes: list[bytes] = []
        self.cycles: list[weakref.ref[RequestResponseCycle]] = []

    async def answer(self, request: bytes) -> bytes:
        """Send ``request`` in one piece and return all that comes until the server closes the connection."""
        async with self.connection() as (reader, writer):
            writer.write(request)
            return await reader.read()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def served(app: Any, protocol: type[HttpToolsProtocol] = CoalescingProtocol) -> AsyncIterator[Served]:
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    found = Served(0)
    transports: list[asyncio.Transport] = []

    class Watched(protocol):  # type: ignore[misc,valid-type]
        def connection_made(self, transport: Any) -> None:
            transports.append(transport)
            super().connection_made(Recorded(transport, found.writes))

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            found.cycles.append(weakref.ref(self.cycle))

    server = await asyncio.get_running_loop().create_server(
        lambda: Watched(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for transport in transports:
            transport.abort()
        await server.wait_closed()
        await until(lambda: not state.tasks)


def sending(*messages: dict[str, Any], error: BaseException | None = None) -> Any:
    """An app that sends ``messages``, then raises ``error``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


def start(status: int = 200, **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def body(data: Any = b"", **more: Any) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, **more}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    taken = b""
    while True:
        message = await receive()
        taken += message.get("body", b"")
        if not message.get("more_body", False):
            break
    await Response(taken, headers={"x-path": scope["path"]})(scope, receive, send)


async def early(scope: Any, receive: Any, send: Any) -> None:
    await send(start(413, content_length="3"))
    while (await receive()).get("more_body", False):
        pass
    await send(body(b"abc"))


async def chunks() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"%d" % number


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await StreamingResponse(chunks())(scope, receive, send)


APPS = {
    "json": JSONResponse({"scores": [1, 2, 3]}),
    "empty": Response(),
    "nothing": Response(status_code=204),
    "not modified": Response(status_code=304),
    "closing": PlainTextResponse("bye", headers={"connection": "close"}),
    "stream": stream,
    "stream of a known length": sending(
        start(content_length="6"), body(b"abc", more_body=True), body(b"def")
    ),
    "stream with an empty first part": sending(
        start(content_length="3"), body(more_body=True), body(b"abc", more_body=True), body()
    ),
    "no length": sending(start(), body(b"abc")),
    "chunked by the app": sending(start(transfer_encoding="chunked"), body(b"abc")),
    "large": Response(b"x" * (COALESCED_BYTES + 1)),
    "memoryview": sending(start(content_length="3"), body(memoryview(b"abc"))),
    "bytearray": sending(start(content_length="3"), body(bytearray(b"abc"))),
    "error before the start": sending(error=RuntimeError("no")),
    "error after the start": sending(start(content_length="3"), error=RuntimeError("no")),
    "error in the body": sending(
        start(content_length="3"), body(b"a", more_body=True), error=RuntimeError("no")
    ),
    "error after the end": sending(start(content_length="1"), body(b"a"), error=RuntimeError("no")),
    "cancelled after the start": sending(start(content_length="3"), error=asyncio.CancelledError()),
    "text": sending(start(content_length="3"), body("abc")),
    "list": sending(start(content_length="3"), body([b"a", b"b", b"c"])),
    "no start": sending(),
    "no body": sending(start(content_length="3")),
    "no body of a stream": sending(start()),
    "body first": sending(body(b"abc")),
    "two starts": sending(start(content_length="3"), start(content_length="3")),
    "too short": sending(start(content_length="3"), body(b"ab")),
    "too long": sending(start(content_length="3"), body(b"abcd")),
    "bad header": sending(start(bad="a\r\nb"), body()),
    "echo": echo,
    "early": early,
}
REQUESTS = {
    "last": LAST,
    "head": LAST.replace(b"GET", b"HEAD"),
    "kept": KEPT + LAST,
    "pipelined": KEPT + KEPT.replace(b"GET", b"HEAD") + KEPT + LAST,
    "1.0": b"GET / HTTP/1.0\r\n\r\n",
    "post": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
    "continue": b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n"
    b"connection: close\r\n\r\nhello",
    "bad": KEPT + b"GET\r\n\r\n",
}


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("name", APPS)
async def test_what_is_sent_is_what_uvicorn_sends(name, request_name):
    answers = []
    for protocol in (HttpToolsProtocol, CoalescingProtocol):
        async with served(APPS[name], protocol) as server, asyncio.timeout(20):
            answers.append(await server.answer(REQUESTS[request_name]))
    assert answers[0] == answers[1]
    assert answers[0] or name == "bad header"  # where uvicorn only closes the connection


@pytest.mark.parametrize("name", ["json", "empty", "nothing", "closing", "memoryview", "echo"])
async def test_a_response_of_known_length_is_one_write(name):
    async with served(APPS[name]) as server:
        await server.answer(KEPT + KEPT + LAST)
    assert len(server.writes) == (1 if name == "closing" else 3)
    assert all(write.startswith(b"HTTP/1.1 20") for write in server.writes)


async def test_a_write_of_100_continue_is_its_own():
    async with served(echo) as server:
        await server.answer(REQUESTS["continue"])
    assert server.writes[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert server.writes[1].endswith(b"\r\n\r\nhello")
    assert len(server.writes) == 2


async def test_large_bodies_are_not_copied_behind_their_heads():
    async with served(APPS["large"]) as server:
        await server.answer(LAST)
    assert [len(write) > 1000 for write in server.writes] == [False, True]


async def test_only_the_first_part_of_a_body_comes_with_the_head():
    async with served(APPS["stream of a known length"]) as server:
        await server.answer(LAST)
    assert [write[-3:] for write in server.writes] == [b"abc", b"def"]


async def test_the_head_of_a_stream_does_not_wait_for_its_first_part():
    first = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await first.wait()
        await send(body(b"abc"))

    async with served(app) as server, asyncio.timeout(20), server.connection() as (reader, writer):
        writer.write(LAST)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        first.set()
        assert b"abc" in await reader.read()


@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
async def test_the_head_of_an_answer_before_the_request_is_complete_is_not_held(expect):
    head, sep, sent = REQUESTS["post"].partition(b"connection: close\r\n\r\n")
    async with served(early) as server, asyncio.timeout(20), server.connection() as (reader, writer):
        writer.write(head + expect + sep)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        writer.write(sent)
        assert await reader.read() == b"abc"


@pytest.mark.parametrize("has_started", [True, False])
async def test_nothing_is_left_of_a_request_whose_client_leaves(has_started):
    waits, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if has_started:
            await send(start(content_length="3"))
        waits.set()
        assert (await receive())["type"] == "http.disconnect"
        await send(body(b"abc") if has_started else start(content_length="3"))
        left.set()

    async with served(app) as server, asyncio.timeout(20), server.connection() as (_, writer):
        writer.write(KEPT)
        await waits.wait()
        gc.disable()
        try:
            writer.transport.abort()
            await left.wait()
            await until(lambda: server.cycles[0]() is None)
        finally:
            gc.enable()
    assert server.writes == []


async def test_a_head_that_nobody_can_have_any_more_is_not_written(caplog):
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(content_length="3"))
        waits.set()
        await goes_on.wait()
        raise RuntimeError("no")

    async with served(app) as server, asyncio.timeout(20), server.connection() as (_, writer):
        writer.write(KEPT)
        await waits.wait()
        cycle = server.cycles[0]()
        writer.transport.abort()
        await until(lambda: cycle.disconnected)
        goes_on.set()
        await until(lambda: "Exception in ASGI application" in caplog.text)
    assert server.writes == []
    assert "closed" not in caplog.text


@pytest.mark.parametrize("protocol", [HttpToolsProtocol, CoalescingProtocol])
async def test_a_websocket_behind_a_request_that_is_not_answered_leaves_its_answer_alone(protocol):
    has_come = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            has_come.set()
            while (await receive())["type"] != "websocket.disconnect":
                pass
            return
        await has_come.wait()
        await send(start(content_length="3"))
        await send(body(b"abc"))

    upgrade = LAST.replace(b"close", b"upgrade").removesuffix(b"\r\n") + (
        b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with served(app, protocol) as server, server.connection() as (reader, writer), asyncio.timeout(20):
        writer.write(KEPT + upgrade)
        assert await reader.readuntil(b"abc") == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks")
async def test_a_response_that_an_eager_task_has_started_is_not_held():
    goes_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(content_length="3"))
        await goes_on.wait()
        await send(body(b"abc"))

    eager_tasks: Any = getattr(asyncio, "eager_task_factory")  # noqa: B009 - not in all versions
    asyncio.get_running_loop().set_task_factory(eager_tasks)
    async with served(app) as server, asyncio.timeout(20), server.connection() as (reader, writer):
        writer.write(KEPT)
        await reader.readuntil(b"\r\n\r\n")
        goes_on.set()
        assert await reader.readexactly(3) == b"abc"


async def test_under_a_uvicorn_that_it_does_not_know_responses_leave_as_without_it(monkeypatch):
    monkeypatch.setattr(coalescing, "_holds", False)
    async with served(APPS["json"]) as server:
        await server.answer(LAST)
    assert len(server.writes) == 2


def test_this_uvicorn_is_known_and_a_changed_one_would_be_told_of(caplog):
    class Renamed(RequestResponseCycle):
        def __init__(self) -> None:
            self.connection = None

        send = RequestResponseCycle.send

    class InLines(RequestResponseCycle):
        __init__ = RequestResponseCycle.__init__

        async def send(self, message: Any) -> None:
            self.transport.write(b"")
            self.transport.writelines([b""])

    with caplog.at_level(logging.WARNING):
        assert can_hold(RequestResponseCycle)
        assert not caplog.text
        for changed in (Renamed, InLines):
            caplog.clear()
            assert not can_hold(changed)
            assert "does not know this uvicorn" in caplog.text


def test_without_httptools_the_error_names_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.http.httptools_impl", raising=False)
    monkeypatch.setitem(sys.modules, "httptools", None)
    monkeypatch.delitem(sys.modules, "asgi_mlperf.wire.coalescing")
    with pytest.raises(ImportError, match=r"pip install 'uvicorn\[standard\]'"):
        importlib.import_module("asgi_mlperf.wire.coalescing")
