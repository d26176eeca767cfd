import subprocess
import sys
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from pydantic import BaseModel

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


def test_an_endpoint_may_be_registered_again_as_older_versions_of_fastapi_do():
    async def endpoint():
        return np.ones(1)

    first = ORJSONRoute("/a", endpoint)
    assert ORJSONRoute("/b", first.endpoint).endpoint is first.endpoint


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


def test_every_wing_module_but_routes_can_be_imported_without_fastapi():
    program = (
        "import sys, importlib, pkgutil\n"
        "sys.modules['fastapi'] = None\n"
        "import asgi_mlperf.wire as wire\n"
        "names = {module.name for module in pkgutil.iter_modules(wire.__path__)} - {'routes'}\n"
        "[importlib.import_module(f'asgi_mlperf.wire.{name}') for name in names]\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
