from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from tests.inference.test_pool import Gate
from tests.support import http_scope, nothing_served, until

from asgi_mlperf import ClientLeft, Plugin, Settings
from asgi_mlperf.hooks import Exchange

pytestmark = pytest.mark.usefixtures("collector_as_found")


class Client:
    """A request whose body comes in parts, and who leaves when told."""

    def __init__(self, *parts: bytes):
        self.parts = list(parts)
        self.left = asyncio.Event()
        self.receiving = 0
        self.most_receiving = 0
        self.sent: list[dict[str, Any]] = []

    async def receive(self):
        self.receiving += 1
        self.most_receiving = max(self.most_receiving, self.receiving)
        try:
            await anyio.lowlevel.checkpoint()
            if self.parts:
                return {"type": "http.request", "body": self.parts.pop(0), "more_body": bool(self.parts)}
            await self.left.wait()
            return {"type": "http.disconnect"}
        finally:
            self.receiving -= 1

    async def send(self, message):
        self.sent.append(message)

    def exchange(self) -> Exchange:
        return Exchange(http_scope("/"), self.receive, self.send, nothing_served())


async def test_the_app_gets_every_message_in_order_while_somebody_watches():
    client, departures = Client(b"a", b"b", b"c"), []
    exchange = client.exchange()
    assert (await exchange.receive())["body"] == b"a"
    exchange.on_departure(lambda: departures.append("left"))
    await until(lambda: not client.parts)
    assert [(await exchange.receive())["body"] for _ in range(2)] == [b"b", b"c"]
    assert departures == []
    client.left.set()
    assert (await exchange.receive())["type"] == "http.disconnect"
    assert (await exchange.receive())["type"] == "http.disconnect"
    assert departures == ["left"]
    assert client.most_receiving == 1
    exchange.close()


async def test_a_watcher_learns_of_the_departure_from_the_apps_own_receive():
    client, departures = Client(), []
    exchange = client.exchange()
    app = asyncio.create_task(exchange.receive())
    await until(lambda: client.receiving == 1)
    exchange.on_departure(lambda: departures.append("left"))
    await anyio.lowlevel.checkpoint()
    assert client.most_receiving == 1
    client.left.set()
    assert (await app)["type"] == "http.disconnect"
    assert departures == ["left"]
    exchange.close()


async def test_the_watch_goes_on_when_the_apps_own_receive_is_cancelled():
    client, departures = Client(), []
    exchange = client.exchange()
    app = asyncio.create_task(exchange.receive())
    await until(lambda: client.receiving == 1)
    exchange.on_departure(lambda: departures.append("left"))
    app.cancel()
    with pytest.raises(asyncio.CancelledError):
        await app
    await until(lambda: client.receiving == 1)
    client.left.set()
    await until(lambda: departures == ["left"])
    assert client.most_receiving == 1
    exchange.close()


async def test_an_app_that_receives_while_the_watch_reads_waits_its_turn():
    client = Client()
    exchange = client.exchange()
    stop = exchange.on_departure(lambda: None)
    await until(lambda: client.receiving == 1)
    app = asyncio.create_task(exchange.receive())
    await anyio.lowlevel.checkpoint()
    assert client.most_receiving == 1
    stop()
    client.left.set()
    assert (await app)["type"] == "http.disconnect"
    exchange.close()


async def test_no_more_than_a_mebibyte_is_read_ahead():
    client = Client(*[b"x" * 300_000] * 10)
    exchange = client.exchange()
    exchange.on_departure(lambda: None)
    await until(lambda: len(client.parts) == 6)
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
    assert len(client.parts) == 6
    bodies = [(await exchange.receive())["body"] for _ in range(10)]
    assert len(b"".join(bodies)) == 3_000_000
    exchange.close()


async def test_who_asks_after_the_departure_is_told_at_once():
    client, departures = Client(), []
    exchange = client.exchange()
    client.left.set()
    exchange.on_departure(lambda: departures.append(1))
    await until(lambda: departures == [1])
    exchange.on_departure(lambda: departures.append(2))
    assert departures == [1, 2]
    exchange.close()


async def test_a_server_whose_receive_fails_fails_the_app_and_not_the_watch():
    async def broken():
        raise RuntimeError("server trouble")

    exchange = Exchange(http_scope("/"), broken, broken, nothing_served())
    exchange.on_departure(lambda: None)
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    with pytest.raises(RuntimeError, match="server trouble"):
        await exchange.receive()
    exchange.close()


async def test_a_stub_that_repeats_its_request_for_ever_is_not_read_for_ever():
    calls = 0

    async def repeating():
        nonlocal calls
        calls += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    exchange = Exchange(http_scope("/"), repeating, repeating, nothing_served())
    exchange.on_departure(lambda: pytest.fail("nobody left"))
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
    assert calls == 2
    assert (await exchange.receive())["type"] == "http.request"
    exchange.close()


async def test_the_first_message_is_the_same_whoever_asks_for_it_first():
    for watched in (False, True):
        client = Client(b"a", b"bc")
        exchange = client.exchange()
        if watched:
            exchange.on_departure(lambda: pytest.fail("nobody left"))
        first, second = await exchange.first(), await exchange.receive()
        assert (first["body"], second["body"], exchange.received_bytes) == (b"a", b"bc", 3)
        assert client.most_receiving == 1
        exchange.close()


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("gone", [None, 0, 1])
async def test_a_response_in_one_step_is_as_one_in_two_messages(changed, gone):
    def starter(exchange, start):
        return {**start, "status": 201, "headers": [(b"x", b"1")]}

    async def answered(in_one_step):
        seen, start = [], {"type": "http.response.start", "status": 200, "headers": []}

        async def send(message):
            if len(seen) == gone:
                raise OSError
            seen.append((message, exchange.status, exchange.sent_bytes, exchange.ended, exchange.has_started))

        serving = nothing_served(starters=(starter,) if changed else ())
        exchange = Exchange(http_scope("/"), send, send, serving)
        try:
            if in_one_step:
                await exchange.answer(start, b"abc")
            else:
                await exchange.send(start)
                await exchange.send({"type": "http.response.body", "body": b"abc"})
        except OSError as error:
            exchange.failed(error)
        exchange.close()
        return seen, exchange.status, exchange.sent_bytes, exchange.ended, serving.traffic.in_flight

    assert await answered(in_one_step=True) == await answered(in_one_step=False)


class Passes(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


@pytest.mark.parametrize("middleware", [[], [Middleware(Passes)]], ids=["bare", "behind BaseHTTPMiddleware"])
@pytest.mark.parametrize("body", ["read", "unread", "streamed"])
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_client_that_leaves_while_its_call_waits_costs_no_compute(middleware, body, spec):
    plugin = Plugin(Settings(pool={"threads": 1}))

    async def compute(request):
        if body == "read":
            await request.body()
        if body == "streamed":

            async def parts():
                yield str(await plugin.run(gate, "mine"))

            return StreamingResponse(parts())
        return PlainTextResponse(str(await plugin.run(gate, "mine")))

    app = Starlette(routes=[Route("/", compute, methods=["POST"])], middleware=middleware)
    plugin.install(app)
    async with plugin.lifespan(app):
        gate = Gate()
        running = asyncio.create_task(plugin.run(gate, "other"))
        await gate.started.get()
        client = Client(b"body")
        scope = http_scope("/", "POST", asgi={"version": "3.0", "spec_version": spec})
        request = asyncio.create_task(app(scope, client.receive, client.send))
        pool = plugin._engine().pool()
        await until(lambda: len(pool._admission) == 1)
        client.left.set()
        await until(lambda: len(pool._admission) == 0)
        (ended,) = await asyncio.gather(request, return_exceptions=True)
        gate.opened.set()
        assert await running == "other"
    assert ended is None or isinstance(ended, ClientDisconnect)
    assert gate.calls == 1
    assert client.most_receiving == 1


async def test_a_client_that_leaves_while_its_call_runs_frees_the_handler_at_once_and_the_slot_later():
    plugin, errors = Plugin(Settings(pool={"threads": 1})), []

    async def compute(request):
        try:
            await plugin.run(gate)
        except ClientLeft as error:
            errors.append(str(error))
            raise

    app = Starlette(routes=[Route("/", compute)])
    plugin.install(app)
    async with plugin.lifespan(app):
        gate, client = Gate(), Client()
        request = asyncio.create_task(app(http_scope("/"), client.receive, client.send))
        await gate.started.get()
        client.left.set()
        await request
        assert client.sent[0]["status"] == 499
        assert (gate.running, plugin._engine().pool()._admission.running) == (1, 1)
        gate.opened.set()
        assert await plugin.run(abs, -1) == 1
    assert errors == ["the client left while Gate waited or ran"]
