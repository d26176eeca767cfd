import functools
from typing import Annotated, Any

import numpy as np
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.routes import ORJSONRoute, parsed

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


def raising(error: Exception, request: Request) -> Any:
    request.state.seen = "seen"
    raise error


ENDPOINTS = {
    "answer": lambda x, _: {"x": x},
    "response": lambda x, _: JSONResponse(x.tolist(), 201),
    "http": lambda _, request: raising(HTTPException(418, "tea"), request),
    "handled": lambda _, request: raising(LookupError("lost"), request),
    "unhandled": lambda _, request: raising(ValueError("wrong"), request),
    "before": lambda _x, _: Breaks(LookupError("early"), started=False),
    "after": lambda _x, _: Breaks(LookupError("late"), started=True),
}


async def own(request: Request, error: LookupError) -> JSONResponse:
    try:
        read: object = (await request.body()).decode()
    except Exception as refusal:  # noqa: BLE001 - of interest is which
        read = repr(refusal)
    return JSONResponse([str(error), getattr(request.state, "seen", None), request.url.path, read], 409)


def app_of(name: str, *, prefix: str, was_short: list[bool]) -> FastAPI:
    async def endpoint(x: Pair, request: Request):
        was_short.append("fastapi_inner_astack" not in request.scope)
        return ENDPOINTS[name](x, request)

    router = APIRouter(route_class=ORJSONRoute)
    router.post("/it")(endpoint)
    app = FastAPI(exception_handlers={LookupError: own})
    app.router.route_class = ORJSONRoute
    if prefix:
        app.include_router(router, prefix=prefix)
    else:
        app.post("/it")(endpoint)
    return app


def outcome(app: FastAPI, path: str, body: object) -> tuple[int, bytes] | str:
    try:
        answer = TestClient(app).post(path, json=body)
    except Exception as error:  # noqa: BLE001 - what a server would see
        return f"{type(error).__name__}: {error} after {error.__cause__!r}"
    return answer.status_code, answer.content


def the_long_way(monkeypatch) -> None:
    monkeypatch.setattr("asgi_mlperf.wire.routes.is_fastapis_app", lambda _: False)


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("body", [[1, 2], [1]], ids=["right", "wrong"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_the_short_way_leads_to_what_fastapis_own_does(name, body, prefix, monkeypatch):
    short, long = [], []
    shortly = outcome(app_of(name, prefix=prefix, was_short=short), f"{prefix}/it", body)
    the_long_way(monkeypatch)
    assert shortly == outcome(app_of(name, prefix=prefix, was_short=long), f"{prefix}/it", body)
    calls = 1 if len(body) == 2 else 0
    assert (short, long) == ([True] * calls, [False] * calls)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_other_methods_are_refused_as_ever(prefix):
    answer = TestClient(app_of("answer", prefix=prefix, was_short=[])).get(f"{prefix}/it")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_what_others_put_around_a_routes_app_is_called():
    was_short, seen = [], []
    app = app_of("answer", prefix="", was_short=was_short)
    (route,) = (each for each in app.routes if isinstance(each, ORJSONRoute))
    inner = route.app

    async def around(scope, receive, send):
        seen.append(scope["path"])
        await inner(scope, receive, send)

    route.app = around
    assert TestClient(app).post("/it", json=[1, 2]).json() == {"x": [1, 2]}
    assert (seen, was_short) == (["/it"], [False])


def test_a_kind_of_route_with_a_handler_of_its_own_is_asked_for_it():
    seen = []

    class Timed(ORJSONRoute):
        def get_route_handler(self):
            handler = super().get_route_handler()

            @functools.wraps(handler)
            async def timed(request):
                seen.append(request.url.path)
                return await handler(request)

            return timed

    app = FastAPI()
    app.router.route_class = Timed

    @app.post("/it")
    async def endpoint(x: Pair):
        return x

    assert TestClient(app).post("/it", json=[1, 2]).json() == [1, 2]
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
