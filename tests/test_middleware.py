from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from tests.support import Answer, call, http_scope, nothing_served

from asgi_mlperf import PerfMiddleware, Plugin
from asgi_mlperf.hooks import Exchange

pytestmark = pytest.mark.usefixtures("collector_as_found")


async def plain(request):
    return PlainTextResponse("plain", headers={"x-own": "1"})


async def stream(request):
    async def parts():
        for number in range(3):
            yield f"data: {number}\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


async def refuse(request):
    raise HTTPException(418, "teapot")


async def crash(request):
    raise RuntimeError("before the response")


async def crash_midway(request):
    async def parts():
        yield "begun"
        raise RuntimeError("after the response began")

    return StreamingResponse(parts())


async def redirect(request):
    return RedirectResponse("/plain")


async def send_file(request):
    return FileResponse(__file__)


async def body(request):
    return PlainTextResponse(await request.body())


async def echo(websocket):
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close(code=1001)


ROUTES = [
    Route("/plain", plain, methods=["GET", "POST"]),
    Route("/stream", stream),
    Route("/refuse", refuse),
    Route("/crash", crash),
    Route("/midway", crash_midway),
    Route("/redirect", redirect),
    Route("/file", send_file),
    Route("/body", body, methods=["POST"]),
    Mount("/mounted", routes=[Route("/plain", plain)]),
    WebSocketRoute("/echo", echo),
]
REQUESTS = [
    ("GET", "/plain"),
    ("HEAD", "/plain"),
    ("OPTIONS", "/plain"),
    ("DELETE", "/plain"),
    ("BREW", "/plain"),
    ("GET", "/stream"),
    ("GET", "/refuse"),
    ("GET", "/crash"),
    ("GET", "/midway"),
    ("GET", "/redirect"),
    ("GET", "/plain/"),
    ("GET", "/file"),
    ("POST", "/body"),
    ("GET", "/mounted/plain"),
    ("GET", "/mounted/none"),
    ("GET", "/none"),
]


async def attempt(app, method, path) -> tuple[Answer, str]:
    """What an app sends, and how it fails."""
    answer = Answer()

    async def receive():
        return {"type": "http.request", "body": b"body", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            message = {**message, "headers": [h for h in message["headers"] if h[0] != b"last-modified"]}
        answer.messages.append(message)

    try:
        await app(http_scope(path, method), receive, send)
    except Exception as error:  # noqa: BLE001 - what it is, is compared
        return answer, repr(error)
    return answer, ""


@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_every_message_and_error_is_as_without_the_plugin(method, path):
    stock, installed, plugin = Starlette(routes=ROUTES), Starlette(routes=ROUTES), Plugin()
    plugin.install(installed)
    async with plugin.lifespan(installed):
        assert await attempt(installed, method, path) == await attempt(stock, method, path)


def test_websockets_are_as_without_the_plugin():
    plugin, app = Plugin(), Starlette(routes=ROUTES)
    plugin.install(app)
    with TestClient(app) as client, client.websocket_connect("/echo") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"
        assert websocket.receive() == {"type": "websocket.close", "code": 1001, "reason": ""}


def test_base_http_middleware_around_and_inside_keeps_working():
    class Adds(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            response = await call_next(request)
            response.headers["x-seen"] = "1"
            return response

    plugin = Plugin()
    app = Starlette(routes=ROUTES, middleware=[Middleware(Adds)], lifespan=plugin.lifespan)
    app.add_middleware(PerfMiddleware, plugin=plugin)
    app.add_middleware(Adds)
    with TestClient(app) as client:
        response = client.get("/plain")
        assert (response.text, response.headers["x-seen"]) == ("plain", "1, 1") or response.headers[
            "x-seen"
        ] == "1"
        assert 'http_route="/plain"' in client.get("/metrics").text


async def statuses_of(app) -> dict[str, float]:
    """Count per status, as the metrics say."""
    text = (await call(app, "/metrics")).body.decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("http_server_request_duration_seconds_count"):
            status = line.split('http_response_status_code="')[1].split('"')[0]
            found[status] = found.get(status, 0) + float(line.split()[-1])
        if line.startswith("http_server_active_requests "):
            assert line.split()[-1] == "0.0"
    return found


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/plain", "200"),
        ("/refuse", "418"),
        ("/crash", "500"),
        ("/midway", "200"),
        ("/none", "404"),
        ("/redirect", "307"),
    ],
)
async def test_each_request_is_counted_once_with_its_status(path, status):
    plugin, app = Plugin(), Starlette(routes=ROUTES)
    plugin.install(app)
    async with plugin.lifespan(app):
        await attempt(app, "GET", path)
        assert await statuses_of(app) == {status: 1.0}


async def test_a_client_that_leaves_before_the_response_is_counted_as_499():
    entered = asyncio.Event()

    async def forever(request):
        entered.set()
        await asyncio.Event().wait()

    plugin, app = Plugin(), Starlette(routes=[Route("/", forever)])
    plugin.install(app)
    async with plugin.lifespan(app):
        task = asyncio.create_task(call(app))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await statuses_of(app) == {"499": 1.0}


async def test_a_client_that_leaves_in_the_middle_of_a_stream_is_counted_as_499():
    def leave(message):
        if message.get("body"):
            raise OSError("the client left")

    plugin, app = Plugin(), Starlette(routes=ROUTES)
    plugin.install(app)
    async with plugin.lifespan(app):
        with pytest.raises(ClientDisconnect):
            await call(app, "/stream", on_send=leave)
        assert await statuses_of(app) == {"499": 1.0}


async def test_a_handlers_own_os_error_is_a_500():
    async def missing(request):
        raise FileNotFoundError

    plugin, app = Plugin(), Starlette(routes=[Route("/", missing)])
    plugin.install(app)
    async with plugin.lifespan(app):
        with pytest.raises(FileNotFoundError):
            await call(app)
        assert await statuses_of(app) == {"500": 1.0}


async def test_a_client_that_leaves_while_its_body_is_read_is_counted_as_499():
    async def receive():
        return {"type": "http.disconnect"}

    async def send(message): ...

    plugin, app = Plugin(), Starlette(routes=ROUTES)
    plugin.install(app)
    async with plugin.lifespan(app):
        with pytest.raises(ClientDisconnect):
            await app(http_scope("/body", "POST"), receive, send)
        assert await statuses_of(app) == {"499": 1.0}


async def test_a_request_ends_with_its_last_byte_not_with_its_background_task():
    plugin = Plugin()
    in_flight_at_background = []

    async def later():
        in_flight_at_background.append(plugin.serving().traffic.in_flight)

    async def respond(request):
        assert plugin.serving().traffic.in_flight == 1
        return PlainTextResponse("done", background=BackgroundTask(later))

    app = Starlette(routes=[Route("/", respond)])
    plugin.install(app)
    async with plugin.lifespan(app):
        await call(app)
    assert in_flight_at_background == [0]


async def test_a_response_with_trailers_ends_with_them():
    plugin, in_flight = Plugin(), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        in_flight.append(plugin.serving().traffic.in_flight)
        await send({"type": "http.response.trailers", "headers": []})
        in_flight.append(plugin.serving().traffic.in_flight)

    async with plugin.lifespan(app):
        await call(PerfMiddleware(app, plugin))
    assert in_flight == [1, 0]


async def test_an_app_that_sends_nothing_is_counted_as_the_500_that_servers_answer():
    async def silent(scope, receive, send): ...

    plugin = Plugin()
    async with plugin.lifespan(silent):
        app = PerfMiddleware(silent, plugin)
        await call(app)
        assert await statuses_of(app) == {"500": 1.0}


async def test_a_path_send_ends_the_response():
    plugin, in_flight = Plugin(), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": __file__})
        in_flight.append(plugin.serving().traffic.in_flight)

    async with plugin.lifespan(app):
        await call(PerfMiddleware(app, plugin))
    assert in_flight == [0]


async def test_a_closer_that_fails_keeps_neither_the_others_nor_the_response(caplog):
    events = []

    def broken(exchange):
        raise RuntimeError("no")

    async def send(message): ...
    async def receive(): ...

    serving = nothing_served(closers=(broken, lambda exchange: events.append("closed")))
    exchange = Exchange(http_scope("/"), receive, send, serving)
    exchange.end()
    exchange.end()
    assert (events, serving.traffic.in_flight) == (["closed"], 0)
    assert "its response is as the app sent it" in caplog.text


async def test_an_opener_that_fails_is_a_500_and_the_request_ends():
    closed = []

    def broken():
        raise RuntimeError("no")

    class Broken:
        has_middleware = False

        def __init__(self):
            self.servings = {}

        def serving(self):
            return nothing_served(openers=(broken,), closers=(closed.append,))

    async def app(scope, receive, send): ...

    with pytest.raises(RuntimeError):
        await call(PerfMiddleware(app, Broken()))
    assert [exchange.status for exchange in closed] == [500]


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_client_that_is_gone_when_the_response_starts_is_counted_as_499(spec):
    def leave(message):
        raise OSError("the client left")

    plugin, app = Plugin(), Starlette(routes=ROUTES)
    plugin.install(app)
    async with plugin.lifespan(app):
        for path in ("/plain", "/stream"):
            with pytest.raises((OSError, ClientDisconnect)):
                await call(app, path, on_send=leave, asgi={"version": "3.0", "spec_version": spec})
        assert await statuses_of(app) == {"499": 2.0}


async def test_a_starter_that_fails_leaves_the_response_as_it_is(caplog):
    sent = []

    def broken(exchange, start):
        raise RuntimeError("no")

    async def send(message):
        sent.append(message)

    async def receive(): ...

    exchange = Exchange(http_scope("/"), receive, send, nothing_served(starters=(broken,)))
    start = {"type": "http.response.start", "status": 200, "headers": []}
    await exchange.send(start)
    assert sent == [start]
    assert "a header could not be added" in caplog.text
