import functools
from contextlib import AsyncExitStack
from typing import Annotated, Any

import fastapi.routing
import numpy as np
import pytest
import starlette.routing
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from tests.support import left_to_collect

from asgi_mlperf import ORJSONResponse
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.routes import ORJSONRoute, parsed
from asgi_mlperf.wire.short_ways import short_way_of

Pair = Annotated[NDArray[np.float32], parsed(ArrayBody(np.float32, "2"))]


class Breaks(Response):
    """Raises ``error`` before or after the start of the response."""

    def __init__(self, error: Exception, *, started: bool) -> None:
        super().__init__()
        self.error, self.started = error, started

    async def __call__(self, scope, receive, send) -> None:
        if self.started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise self.error


def raising(kind: type[Exception], *about: object) -> Any:
    raise kind(*about)  # kept by no frame: what is left of it would be this one's doing


ENDPOINTS = {
    "answer": lambda x: {"x": x},
    "array": lambda x: x,
    "scalar": lambda x: x.sum(),
    "strided": lambda x: np.stack([x, x]).T,
    "response": lambda x: JSONResponse(x.tolist(), 201),
    "http": lambda _: raising(HTTPException, 418, "tea"),
    "handled": lambda _: raising(LookupError, "lost"),
    "unhandled": lambda _: raising(ValueError, "wrong"),
    "before": lambda _: Breaks(LookupError("early"), started=False),
    "after": lambda _: Breaks(LookupError("late"), started=True),
}


async def own(request: Request, error: LookupError) -> JSONResponse:
    try:
        read: object = (await request.body()).decode()
    except Exception as refusal:  # noqa: BLE001 - of interest is which
        read = repr(refusal)
    return JSONResponse([str(error), request.url.path, read], 409)


@pytest.fixture
def stacks(monkeypatch) -> list[object]:
    """The exit stacks that FastAPI's routes enter from now on: two in a request."""
    entered: list[object] = []

    class Counted(AsyncExitStack):
        async def __aenter__(self):
            entered.append(self)
            return await super().__aenter__()

    monkeypatch.setattr("fastapi.routing.AsyncExitStack", Counted)
    return entered


def app_of(name: str, prefix: str = "", router: APIRouter | None = None) -> FastAPI:
    async def endpoint(x: Pair):
        return ENDPOINTS[name](x)

    app = FastAPI(exception_handlers={LookupError: own})
    app.router.route_class = ORJSONRoute
    if prefix:
        router = router or APIRouter(route_class=ORJSONRoute)
        router.post("/it")(endpoint)
        app.include_router(router, prefix=prefix)
    else:
        app.post("/it")(endpoint)
    return app


def route_of(app: FastAPI) -> ORJSONRoute:
    (route,) = (each for each in app.routes if isinstance(each, ORJSONRoute))
    return route


def outcome(app: FastAPI, path: str, body: object) -> tuple[int, list[tuple[str, str]], bytes] | str:
    try:
        answer = TestClient(app).post(path, json=body)
    except Exception as error:  # noqa: BLE001 - what a server would see
        return f"{type(error).__name__}: {error} after {error.__cause__!r}"
    return answer.status_code, answer.headers.multi_items(), answer.content


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("body", [[1, 2], [1]], ids=["right", "wrong"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_the_short_way_leads_to_what_fastapis_own_does(name, body, prefix, monkeypatch, stacks):
    shortly = outcome(app_of(name, prefix), f"{prefix}/it", body)
    assert not stacks
    monkeypatch.setattr("asgi_mlperf.wire.routes.is_fastapis_handle", lambda _: False)
    assert shortly == outcome(app_of(name, prefix), f"{prefix}/it", body)
    assert len(stacks) == 2


class Spelled(ORJSONResponse):
    media_type = "application/x-spelled"


@pytest.mark.parametrize("options", [{"status_code": 201}, {"response_class": Spelled}])
def test_what_a_route_says_of_its_response_holds_for_arrays_on_the_short_way(options, stacks):
    app = FastAPI()
    app.router.route_class = ORJSONRoute

    @app.post("/it", **options)
    async def endpoint(x: Pair):
        return x

    answer = TestClient(app).post("/it", json=[1, 2])
    assert not stacks
    assert answer.json() == [1, 2]
    assert answer.status_code == options.get("status_code", 200)
    assert ("spelled" in answer.headers["content-type"]) == ("response_class" in options)


def test_what_is_put_around_an_app_that_has_answered_is_asked_from_then_on():
    app = app_of("array")
    route, around = route_of(app), []
    client, inner = TestClient(app), route.app
    assert client.post("/it", json=[1, 2]).json() == [1, 2]

    async def outer(scope, receive, send):
        around.append(scope["path"])
        await inner(scope, receive, send)

    route.app = outer
    assert client.post("/it", json=[1, 2]).json() == [1, 2]
    assert around == ["/it"]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_other_methods_are_refused_as_ever(prefix):
    answer = TestClient(app_of("answer", prefix)).get(f"{prefix}/it")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_an_endpoint_that_takes_the_request_finds_fastapis_exit_stacks_in_it():
    app = FastAPI()
    app.router.route_class = ORJSONRoute

    @app.post("/it")
    async def endpoint(x: Pair, request: Request):
        return {"x": x, "stack": "fastapi_inner_astack" in request.scope}

    assert TestClient(app).post("/it", json=[1, 2]).json() == {"x": [1, 2], "stack": True}


async def test_an_error_leaves_no_reference_cycle():
    left, before = await left_to_collect(route_of(app_of("unhandled")).handle, b"[1, 2]", ValueError)
    assert left == before


def seen_by(handler, seen: list[str]):
    @functools.wraps(handler)
    async def around(request):
        seen.append(request.url.path)
        return await handler(request)

    return around


def test_an_app_that_others_put_around_a_routes_is_called(stacks):
    seen = []
    app = app_of("answer")
    route = route_of(app)
    inner = route.app

    async def around(scope, receive, send):
        seen.append(scope["path"])
        await inner(scope, receive, send)

    route.app = around
    assert TestClient(app).post("/it", json=[1, 2]).json() == {"x": [1, 2]}
    assert (seen, len(stacks)) == (["/it"], 2)


def test_a_handler_that_others_put_around_a_routes_is_called():
    seen = []
    app = app_of("answer")
    route = route_of(app)
    route.app = fastapi.routing.request_response(seen_by(route.get_route_handler(), seen))
    assert TestClient(app).post("/it", json=[1, 2]).json() == {"x": [1, 2]}
    assert seen == ["/it"]


@pytest.mark.parametrize("on", ["route", "kind"])
def test_what_others_make_of_get_route_handler_is_called(on, monkeypatch):
    seen = []
    router = APIRouter(route_class=ORJSONRoute)
    app = app_of("answer", "/v1", router)
    own = ORJSONRoute.get_route_handler
    if on == "kind":
        monkeypatch.setattr(ORJSONRoute, "get_route_handler", lambda route: seen_by(own(route), seen))
    else:
        route: Any = router.routes[0]
        route.get_route_handler = lambda: seen_by(own(route), seen)
    assert TestClient(app).post("/v1/it", json=[1, 2]).json() == {"x": [1, 2]}
    assert seen == ["/v1/it"]


def test_a_kind_of_route_with_a_handler_of_its_own_is_asked_for_it():
    seen = []

    class Timed(ORJSONRoute):
        def get_route_handler(self):
            return seen_by(super().get_route_handler(), seen)

    app = FastAPI()
    app.router.route_class = Timed

    @app.post("/it")
    async def endpoint(x: Pair):
        return x

    assert TestClient(app).post("/it", json=[1, 2]).json() == [1, 2]
    assert seen == ["/it"]


@pytest.mark.parametrize("kind", [fastapi.routing.APIRoute, starlette.routing.Route])
def test_what_others_put_in_place_of_a_routes_handle_is_called(kind, monkeypatch):
    seen = []
    own = kind.handle

    async def handle(self, scope, receive, send):
        seen.append(scope["path"])
        await own(self, scope, receive, send)

    monkeypatch.setattr(kind, "handle", handle)
    assert TestClient(app_of("answer")).post("/it", json=[1, 2]).json() == {"x": [1, 2]}
    assert seen == ["/it"]


def test_a_limit_of_the_body_holds():
    app = FastAPI()
    app.router.route_class = ORJSONRoute

    @app.post("/it", max_body_size=8)
    async def endpoint(x: Pair):
        return x

    api = TestClient(app)
    assert api.post("/it", json=[1, 2]).status_code == 200
    assert api.post("/it", content=b"[1" + b" " * 9 + b", 2]").status_code == 413


def test_a_reader_that_somebody_wrapped_is_called():
    read = parsed(ArrayBody(np.float32, "3")).dependency

    @functools.wraps(read)
    async def doubled(request: Request):
        return 2 * await read(request)

    app = FastAPI()
    app.router.route_class = ORJSONRoute

    @app.post("/it")
    async def it(x: Annotated[Any, Depends(doubled)]):
        return x

    assert short_way_of(route_of(app).app) is not None
    client = TestClient(app)
    assert client.post("/it", json=[1, 2, 3]).json() == [2, 4, 6]
    assert client.post("/it", json=[1, 2]).status_code == 422
