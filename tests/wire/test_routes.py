import functools
import subprocess
import sys
import threading
import uuid
from typing import Annotated, Any

import fastapi.routing
import numpy as np
import pytest
import torch
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.dependencies.utils import get_parameterless_sub_dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.telemetry import get_telemetry_data
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from opentelemetry.trace import NoOpTracer, TracerProvider
from pydantic import BaseModel

from asgi_mlperf import ORJSONResponse
from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import TensorResponse
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.routes import Array, ORJSONRoute, parsed
from asgi_mlperf.wire.tables import TableBody


class Model(BaseModel):
    x: int


def add_header(response: Response) -> None:
    response.headers["x-dependency"] = "1"


ran: list[int] = []


def build(route_class):  # noqa: C901 - a flat list of endpoints
    router = APIRouter(route_class=route_class, dependencies=[Depends(add_header)])

    @router.get("/async/{n}", status_code=201)
    async def asynchronous(n: int, response: Response, background: BackgroundTasks, q: str = "z"):
        """What it does."""
        response.headers["x-a"] = "b"
        response.set_cookie("c", "1")
        background.add_task(ran.append, n)
        return {"n": n, "q": q}

    @router.get("/sync")
    def synchronous(request: Request):
        return [request.url.path]

    @router.get("/status")
    async def status(response: Response):
        response.status_code = 418

    @router.get("/typed")
    async def typed() -> Model:
        return Model(x=1)

    @router.get("/modelled", response_model=Model)
    async def modelled():
        return {"x": "1", "y": 2}

    @router.get("/model")
    async def model():
        return Model(x=1)

    @router.get("/nothing", status_code=204)
    async def nothing() -> None:
        return None

    @router.get("/plain", response_class=PlainTextResponse)
    async def plain():
        return "hi"

    @router.get("/response")
    async def response():
        return JSONResponse({"a": 1}, 202)

    @router.get("/lines")
    def lines():
        yield {"a": 1}

    @router.api_route("/many", methods=["GET"], response_model=None)
    async def many(a: int = 1):
        return a

    class Callable:
        async def __call__(self, a: int = 1):
            return {"a": a}

    router.add_api_route("/callable", Callable(), name="callable")
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.include_router(router)
    return app


APP, STOCK = build(ORJSONRoute), build(APIRouter().route_class)
PATHS = [
    "/async/3?q=1", "/async/x", "/sync", "/status", "/typed", "/modelled", "/model", "/nothing", "/plain",
    "/response", "/lines", "/many", "/callable?a=2",
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("path", PATHS)
def test_responses_are_those_of_a_stock_route(prefix, path):
    ran.clear()
    ours, stock = (TestClient(app).get(prefix + path) for app in (APP, STOCK))
    assert (ours.status_code, ours.content) == (stock.status_code, stock.content)
    assert sorted(ours.headers.items()) == sorted(stock.headers.items())
    assert len(ran) == (2 if path == "/async/3?q=1" else 0)


def test_a_routes_endpoint_stays_the_function_that_was_declared():
    async def endpoint():
        return np.ones(1)

    assert ORJSONRoute("/a", endpoint).endpoint is endpoint


def test_a_handler_may_be_made_twice():
    router = APIRouter(route_class=ORJSONRoute, dependencies=[Depends(add_header)])
    router.get("/a")(lambda: np.ones(1))
    app = FastAPI()
    app.router.routes.extend(router.routes)
    (route,) = router.routes
    assert isinstance(route, ORJSONRoute)
    route.app = fastapi.routing.request_response(route.get_route_handler())
    answer = TestClient(app).get("/a")
    assert (answer.json(), answer.headers["x-dependency"]) == ([1], "1")


@pytest.mark.parametrize("where", ["route", "router", "include", "app"])
def test_a_response_class_of_ones_own_or_of_a_router_is_kept(where):
    class Own(PlainTextResponse):
        media_type = "text/own"

    def own(place):
        return {"default_response_class": Own} if place == where else {}

    async def endpoint():
        return "hi"

    router = APIRouter(route_class=ORJSONRoute, **own("router"))
    router.get("/own", **({"response_class": Own} if where == "route" else {}))(endpoint)
    app = FastAPI(**own("app"))
    app.include_router(router, **own("include"))
    answer = TestClient(app).get("/own")
    assert (answer.text, answer.headers["content-type"]) == ("hi", "text/own; charset=utf-8")


def test_an_orjson_response_class_writes_the_arrays_of_its_routes():
    class Own(ORJSONResponse):
        media_type = "application/own+json"

        def __init__(self, content, status_code=202, **options):
            super().__init__(content, status_code, **options)

    app = FastAPI(default_response_class=Own)
    app.router.route_class = ORJSONRoute
    app.get("/own")(lambda: np.ones(1))
    answer = TestClient(app).get("/own")
    assert (answer.json(), answer.headers["content-type"]) == ([1], "application/own+json")
    assert answer.status_code == 202


def test_endpoints_may_be_wrapped_in_functions_of_another_kind():
    async def asynchronous():
        return np.ones(1)

    @functools.wraps(asynchronous)
    def wrapped():
        return asynchronous()

    def generator():
        yield "a"

    api = client(wrapped=wrapped, partial=functools.partial(asynchronous))
    api.app.post("/generated")(functools.partial(generator))
    assert api.post("/wrapped").json() == [1]
    assert api.post("/partial").json() == [1]
    assert api.post("/generated").text == '"a"\n'


def test_what_only_fastapi_can_write_is_written_as_it_does():
    class Own:
        def __init__(self):
            self.a = 1

    class LikeAUUID:
        __class__ = property(lambda _: uuid.UUID)
        __dict__ = property(lambda _: int("none"))

        def __str__(self):
            return "123"

    async def own():
        return [Own(), LikeAUUID()]

    async def nobodys():
        return {"x": [object()]}

    async def many():
        return [Own() for _ in range(200_000)]

    api = client(own=own, nobodys=nobodys, many=many)
    assert len(api.post("/many").json()) == 200_000
    assert api.post("/own").json() == [{"a": 1}, "123"]
    with pytest.raises(UnserializableError, match=r"\$\.x\[0\]"):
        api.post("/nobodys")


def test_where_fastapis_handler_is_another_one_the_route_is_left_to_it(monkeypatch, caplog):
    async def handler(_):
        return PlainTextResponse("their own")

    monkeypatch.setattr(fastapi.routing, "get_request_handler", lambda **_: handler)
    assert client(sum_up=sum_up).post("/sum_up").text == "their own"
    assert "/sum_up is left to it" in caplog.text


def test_openapi_is_unchanged():
    assert APP.openapi() == STOCK.openapi()


def client(**endpoints):
    app = FastAPI()
    app.router.route_class = ORJSONRoute
    for name, endpoint in endpoints.items():
        app.post(f"/{name}")(endpoint)
    return TestClient(app)


def test_untyped_endpoints_may_return_arrays():
    async def numpy():
        return {"y": np.ones((1, 2), "f4").T, "n": np.int64(3), "nan": np.float32("nan")}

    def tensor():
        return torch.tensor([[0.5]], requires_grad=True)

    both = client(numpy=numpy, tensor=tensor)
    assert both.post("/numpy").json() == {"y": [[1], [1]], "n": 3, "nan": None}
    assert both.post("/tensor").json() == [[0.5]]


async def embed(x: Array[np.float32, "n 2"], scale: float = 1.0):  # noqa: F722 - a shape
    with np.errstate(all="ignore"):
        return x * np.float32(scale)


async def score(x: Annotated[NDArray[np.float64], parsed(ArrayBody(np.float64, "2"))]):
    with np.errstate(all="ignore"):
        return x.sum()


async def table(columns: Annotated[dict[str, NDArray[Any]], parsed(TableBody({"a": np.int64}))]):
    return columns


def test_parameters_are_read_from_the_body():
    api = client(embed=embed, score=score, table=table)
    assert api.post("/embed?scale=2", json=[[1, 2]]).json() == [[2, 4]]
    assert api.post("/score", json=[1, 2]).json() == 3
    assert api.post("/table", json={"a": [1]}).json() == {"a": [1]}


@pytest.fixture
def fastapi_solves_nothing(monkeypatch):
    async def refuse(**_):
        raise AssertionError("FastAPI solved the dependencies")

    monkeypatch.setattr("fastapi.routing.solve_dependencies", refuse)


@pytest.mark.usefixtures("fastapi_solves_nothing")
@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_body_and_the_request_are_all_that_is_looked_for_where_nothing_else_is_asked_for(prefix):
    router = APIRouter(route_class=ORJSONRoute)

    @router.post("/async", status_code=201)
    async def asynchronous(x: Array[np.float32, "2"], request: Request):
        return {"path": request.url.path, "x": x, "thread": threading.get_ident()}

    @router.post("/def")
    def synchronous(x: Array[np.float32, "2"]):
        return {"x": x, "thread": threading.get_ident()}

    @router.post("/nothing", status_code=204)
    async def nothing():
        return None

    app = FastAPI()
    app.router.route_class = ORJSONRoute
    app.include_router(router, prefix=prefix)
    if not prefix:
        app.router.routes[:] = router.routes
    with TestClient(app) as api:
        on_loop = api.post(f"{prefix}/async", json=[1, 2])
        assert on_loop.status_code == 201
        assert on_loop.json()["path"] == f"{prefix}/async"
        in_thread = api.post(f"{prefix}/def", json=[3, 4])
        assert in_thread.json()["x"] == [3, 4]
        assert in_thread.json()["thread"] != on_loop.json()["thread"]
        assert api.post(f"{prefix}/nothing").status_code == 204
        assert api.post(f"{prefix}/def", json=[1]).status_code == 422


@pytest.mark.parametrize("where", ["route", "router", "include", "app"])
def test_dependencies_from_everywhere_are_asked(where):
    def refuse():
        raise HTTPException(401)

    guards = {
        name: [Depends(refuse)] if name == where else [] for name in ("route", "router", "include", "app")
    }
    router = APIRouter(route_class=ORJSONRoute, dependencies=guards["router"])
    router.post("/embed", dependencies=guards["route"])(sum_up)
    app = FastAPI(dependencies=guards["app"])
    app.include_router(router, dependencies=guards["include"])
    assert TestClient(app).post("/embed", json=[1, 2]).status_code == 401


def test_a_dependency_that_is_put_in_later_is_asked_too():
    def refuse():
        raise HTTPException(401)

    api = client(sum_up=sum_up)
    assert api.post("/sum_up", json=[1]).status_code == 200
    (route,) = (each for each in api.app.routes if isinstance(each, ORJSONRoute))
    late = get_parameterless_sub_dependant(depends=Depends(refuse), path=route.path)
    route.dependant.dependencies.insert(0, late)
    assert api.post("/sum_up", json=[1]).status_code == 401


async def sum_up(x: Array[np.float32, "n"]):  # noqa: F821 - a shape
    return float(x.sum())


def test_what_reads_a_body_can_be_overridden_and_put_back():
    body = parsed(ArrayBody(np.float32, "2"))

    async def endpoint(x: Annotated[NDArray[np.float32], body]):
        return x

    api = client(endpoint=endpoint)
    api.app.dependency_overrides[body.dependency] = lambda: np.zeros(1, np.float32)
    assert api.post("/endpoint", json=[1, 2]).json() == [0]
    api.app.dependency_overrides.clear()
    assert api.post("/endpoint", json=[1, 2]).json() == [1, 2]


def test_two_parameters_of_one_declaration_are_one_body():
    row = Array[np.float32, "2"]

    async def both(x: row, y: row):
        return [x is y, x]

    assert client(both=both).post("/both", json=[1, 2]).json() == [True, [1, 2]]


class Tracing(TracerProvider):
    def get_tracer(self, *_args, **_options):
        return NoOpTracer()


def test_fastapis_own_telemetry_sees_the_parameters():
    async def observed(x: Array[np.float32, "2"]):
        seen = get_telemetry_data()
        return list(seen.values) if seen and seen.values else []

    app = FastAPI(telemetry={"tracer_provider": Tracing()})
    app.router.route_class = ORJSONRoute
    app.post("/observed")(observed)
    assert "x" in TestClient(app).post("/observed", json=[1, 2]).json()


def test_a_handler_that_another_library_wrapped_is_left_to_it(monkeypatch):
    wrapped = fastapi.routing.get_request_handler
    seen = []

    def wrap(**options):
        dependant, handler = options["dependant"], wrapped(**options)

        async def around(request):
            seen.append(dependant.path)
            return await handler(request)

        return around

    monkeypatch.setattr(fastapi.routing, "get_request_handler", wrap)

    async def half(x: Array[np.float32, "n"]):  # noqa: F821 - a shape
        return x / 2

    assert client(half=half).post("/half", json=[1, 2]).json() == [0.5, 1]
    assert seen == ["/half"]


def test_a_body_that_is_not_what_was_declared_is_a_validation_error_like_any_other():
    api = client(embed=embed)
    refusal = api.post("/embed", json=[[1, 2], [3, "x"]])
    assert refusal.status_code == 422
    assert refusal.json() == {
        "detail": [{"type": "type", "loc": ["body", 1, 1], "msg": "Input should be a number"}]
    }
    unsupported = api.post("/embed", content=b"", headers={"content-type": "text/plain"})
    assert unsupported.status_code == 415
    assert unsupported.json()["detail"][0]["type"] == "media_type"


def test_an_app_may_answer_validation_errors_in_its_own_way():
    api = client(embed=embed)

    async def own(_request, error):
        return JSONResponse(len(error.errors()), 400)

    api.app.add_exception_handler(RequestValidationError, own)
    assert api.post("/embed", json=[1]).json() == 1


def test_bodies_stand_in_openapi_with_every_media_type():
    operation = client(embed=embed).get("/openapi.json").json()["paths"]["/embed"]["post"]
    content = operation["requestBody"]["content"]
    assert content["application/json"]["schema"] == {
        "type": "array",
        "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    }
    assert {"application/x-npy", "application/octet-stream", "application/vnd.apache.arrow.stream"} <= set(
        content
    )
    assert {"200", "413", "415", "422"} <= set(operation["responses"])


def build_api():
    api = FastAPI(openapi_url="/openapi.json")
    api.router.route_class = ORJSONRoute
    api.post("/embed")(embed)
    api.post("/score")(score)
    api.post("/table")(table)

    @api.post(
        "/echo", responses={200: {"content": TensorResponse.CONTENT}, 406: {"description": "No format"}}
    )
    async def echo(x: Array[np.int32, "... 2"]):  # noqa: F722 - a shape
        return TensorResponse(x)

    return api


def test_schemathesis_accepts_the_schema_and_finds_no_server_error():
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_asgi("/openapi.json", build_api())
    schema.raw_schema["paths"]["/echo"]["post"]["responses"]["200"].pop("content")

    for operation in schema.get_all_operations():

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def answers_cleanly(case):
            response = case.call()
            assert response.status_code in {200, 413, 415, 422}, response.text

        answers_cleanly()


def test_every_wing_module_but_three_can_be_imported_without_fastapi():
    program = (
        "import sys, importlib, pkgutil\n"
        "sys.modules['fastapi'] = None\n"
        "import asgi_mlperf.wire as wire\n"
        "names = {module.name for module in pkgutil.iter_modules(wire.__path__)}\n"
        "names -= {'routes', 'handlers', 'short_ways'}\n"
        "[importlib.import_module(f'asgi_mlperf.wire.{name}') for name in names]\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
