"""What stays as it is for requests that are answered without Starlette's own request."""

import functools
import inspect
from dataclasses import replace
from typing import Annotated, Any

import anyio
import numpy as np
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from tests.support import http_scope

from asgi_mlperf import Plugin
from asgi_mlperf.wire import endpoints
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.endpoints import Endpoint
from asgi_mlperf.wire.responses import lightness
from asgi_mlperf.wire.routes import ORJSONRoute, parsed

pytestmark = pytest.mark.usefixtures("collector_as_found")

row = ArrayBody(np.float32, "2")
Pair = Annotated[NDArray[np.float32], parsed(row)]
RIGHT, WRONG = b"[1, 2]", b"[1]"
COUNTED = "http_server_request_duration_seconds_count"


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def same(x):
    return x


async def ask(app, path, *parts: bytes, method="POST") -> tuple[int, bytes]:
    """Return the status and the body of a response; a client that sends no parts has left."""
    sent: list[dict[str, Any]] = []
    unread = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    unread += [{"type": "http.disconnect"}] * (not parts)

    async def receive():
        return unread.pop(0) if unread else await anyio.sleep_forever()

    async def send(message):
        sent.append(message)

    with anyio.fail_after(5):
        await app(http_scope(path, method), receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def app_of(*routes, handlers: Any = None) -> tuple[Plugin, FastAPI]:
    plugin, app = Plugin(), FastAPI(routes=[*routes], exception_handlers=handlers)
    app.router.route_class = ORJSONRoute
    plugin.install(app)
    return plugin, app


class Extended(ArrayBody):
    async def __call__(self, request):
        return await super().__call__(request)


class Breaks(Response):
    async def __call__(self, scope, receive, send):
        raise LookupError


async def reading(request, error):
    """Say what a handler finds of a body after its endpoint failed."""
    try:
        body = (await request.body()).decode()
    except RuntimeError as refusal:
        body = str(refusal)
    return JSONResponse([type(error).__name__, body], 409)


async def looking(request, error):
    return JSONResponse(await request.is_disconnected(), 409)


@pytest.mark.parametrize(
    "path", ["/async", "/def", "/wrapped", "/endpoint", "/extended", "/response", "/def-response"]
)
@pytest.mark.parametrize(
    "parts", [(RIGHT,), (b"[1,", b" 2]"), (WRONG,), ()], ids=["right", "in parts", "wrong", "left"]
)
async def test_a_handler_does_not_wait_for_a_body_that_was_read(path, parts):
    async def lost(x):
        raise LookupError

    read = parsed(row).dependency

    @functools.wraps(read)
    async def keeping(request: Request):
        await request.body()
        return await read(request)

    handlers = {LookupError: reading, RequestValidationError: reading, ClientDisconnect: looking}
    routes = [
        Route("/endpoint", row.endpoint(lost), methods=["POST"]),
        Route("/extended", Extended(np.float32, "2").endpoint(lost), methods=["POST"]),
    ]
    plugin, app = app_of(*routes, handlers=handlers)

    @app.post("/async")
    async def asynchronous(x: Pair):
        raise LookupError

    @app.post("/def")
    def synchronous(x: Pair):
        raise LookupError

    @app.post("/wrapped")
    async def wrapped(x: Annotated[Any, Depends(keeping)]):
        raise LookupError

    @app.post("/response")
    async def breaking(x: Pair):
        return Breaks()

    @app.post("/def-response")
    def breaking_too(x: Pair):
        return Breaks()

    if path in {"/endpoint", "/extended"} and parts == (WRONG,):
        return  # a refusal is the app's to say there
    async with plugin.lifespan(app):
        found = [await ask(app, path, *parts) for _ in range(3)]
    if not parts:
        expected = b"true"
    else:
        body = b"".join(parts) if path == "/wrapped" else b"Stream consumed"
        error = b"RequestValidationError" if parts == (WRONG,) else b"LookupError"
        expected = b'["%s","%s"]' % (error, body)
    assert found == [(409, expected)] * 3


async def test_what_somebody_made_of_a_body_or_an_endpoint_is_asked_each_time(monkeypatch):
    asked = []

    class Checked(ArrayBody):
        async def __call__(self, request):
            asked.append("body")
            return await super().__call__(request)

    class Logged(Endpoint[Any]):
        async def __call__(self, scope, receive, send):
            asked.append("endpoint")
            await super().__call__(scope, receive, send)

    checked = Checked(np.float32, "2")
    plugin, app = app_of(
        Route("/body", checked.endpoint(same), methods=["POST"]),
        Route("/endpoint", Logged(row, same), methods=["POST"]),
        Route("/plain", row.endpoint(same), methods=["POST"]),
    )

    @app.post("/parsed")
    async def it(x: Annotated[Any, parsed(checked)]):
        return x

    async with plugin.lifespan(app):
        for _ in range(3):
            for path in ("/parsed", "/body", "/endpoint", "/plain"):
                assert await ask(app, path, RIGHT) == (200, b"[1.0,2.0]")
        assert asked == ["body", "body", "endpoint"] * 3
        own = Endpoint.__call__

        async def patched(*args):
            asked.append("patched")
            await own(*args)

        monkeypatch.setattr(Endpoint, "__call__", patched)
        for _ in range(3):
            await ask(app, "/plain", RIGHT)
        assert asked[9:] == ["patched"] * 3
    assert endpoints._CALL is own


async def test_a_mixin_of_a_route_is_asked_each_time(monkeypatch):
    asked = []

    class Mixin(APIRoute):
        pass

    class Mixed(ORJSONRoute, Mixin):
        pass

    async def it(x: Pair):
        return x

    plugin, app = app_of(Mixed("/it", it, methods=["POST"]))

    def handle(self, scope, receive, send):
        asked.append(1)
        return APIRoute.handle(self, scope, receive, send)

    async with plugin.lifespan(app):
        for _ in range(2):
            assert await ask(app, "/it", RIGHT) == (200, b"[1.0,2.0]")
        monkeypatch.setattr(Mixin, "handle", handle, raising=False)
        for _ in range(2):
            assert await ask(app, "/it", RIGHT) == (200, b"[1.0,2.0]")
    assert asked == [1, 1]


def test_an_endpoint_is_an_asgi_app_to_who_asks_for_its_kind():
    assert inspect.iscoroutinefunction(row.endpoint(same).__call__)


async def test_an_endpoint_that_passes_a_request_on_is_counted_where_it_went():
    async def leaf(request):
        return PlainTextResponse("leaf")

    below, turns = Router([Route("/a", leaf), Route("/b", leaf)]), iter(["/a", "/b"] * 2)

    class Passes(Response):
        async def __call__(self, scope, receive, send):
            scope["path"] = next(turns)
            await below(scope, receive, send)

    plugin, app = app_of()

    @app.get("/it")
    async def it():
        return Passes()

    async with plugin.lifespan(app):
        for _ in range(4):
            assert await ask(app, "/it", b"", method="GET") == (200, b"leaf")
        _, page = await ask(app, "/metrics", b"", method="GET")
    counted = [line for line in page.decode().splitlines() if line.startswith(COUNTED)]
    assert [line.partition("http_route=")[2] for line in counted] == ['"/a"} 2.0', '"/b"} 2.0']


async def test_the_plugins_own_paths_are_its_own_also_where_a_way_is_known():
    plugin, app = app_of(Route("/it", row.endpoint(same), methods=["GET"]))

    async def plugins(scope, receive, send):
        await Response("the plugin's")(scope, receive, send)

    async with plugin.lifespan(app):
        for _ in range(2):
            assert await ask(app, "/it", RIGHT, method="GET") == (200, b"[1.0,2.0]")
        servings: Any = plugin.servings
        (loop, serving), *_ = servings.items()
        servings[loop] = replace(serving, endpoints={"/it": plugins})
        assert await ask(app, "/it", RIGHT, method="GET") == (200, b"the plugin's")
        servings[loop] = serving


def test_what_is_light_is_worked_out_once_for_the_same_settings():
    assert lightness() is lightness()
