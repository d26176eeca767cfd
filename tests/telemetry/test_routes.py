from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from tests.support import call

from asgi_mlperf import PerfMiddleware, Plugin


async def hello(request=None):
    return PlainTextResponse("hello")


async def answer():
    return "hello"


def starlette_app(tmp_path):
    inner = Starlette(routes=[Route("/z/{id}", hello), Route("/plain", hello)])
    return Starlette(
        routes=[
            Route("/items/{id:int}", hello),
            Route("/only-post", hello, methods=["POST"]),
            Mount("/sub/{tenant}", inner),
            Mount("/twice", Router([Mount("/deep/{level}", inner)])),
            Mount("/again", inner),
            Mount("/static", StaticFiles(directory=tmp_path)),
            Host("api.test", Router([Route("/hosted/{id}", hello)])),
        ]
    )


def fastapi_app(tmp_path):
    leaf = APIRouter()
    leaf.get("/x/{id}")(answer)
    middle = APIRouter()
    middle.include_router(leaf, prefix="/r")
    middle.mount("/files", StaticFiles(directory=tmp_path))
    inner = FastAPI()
    inner.get("/z/{id}")(answer)
    inner.include_router(leaf, prefix="/inner")
    app = FastAPI()
    app.get("/items/{id}")(answer)
    app.post("/only-post")(answer)
    app.include_router(middle, prefix="/v1")
    app.include_router(leaf, prefix="/v2")
    app.mount("/sub/{tenant}", inner)
    app.add_route("/raw/{id}", hello)
    return app


STARLETTE = [
    ("/items/3", "/items/{id}"),
    ("/only-post", "/only-post"),
    ("/sub/t1/z/4", "/sub/{tenant}/z/{id}"),
    ("/sub/t1/none", "/sub/{tenant}/{path}"),
    ("/twice/deep/1/z/4", "/twice/deep/{level}/z/{id}"),
    ("/again/plain", "/again/plain"),
    ("/static/file.txt", "/static/{path}"),
    ("/static/missing.txt", "/static/{path}"),
    ("/items/3/", ""),
    ("/none", ""),
]
FASTAPI = [
    ("/items/3", "/items/{id}"),
    ("/only-post", "/only-post"),
    ("/v1/r/x/1", "/v1/r/x/{id}"),
    ("/v2/x/1", "/v2/x/{id}"),
    ("/v1/files/file.txt", "/v1/files/{path}"),
    ("/sub/t1/z/1", "/sub/{tenant}/z/{id}"),
    ("/sub/t1/inner/x/1", "/sub/{tenant}/inner/x/{id}"),
    ("/raw/5", "/raw/{id}"),
    ("/docs", "/docs"),
    ("/sub/t1/docs", "/sub/{tenant}/docs"),
    ("/items/3/", ""),
    ("/none", ""),
]


def routes_counted(text: str) -> dict[str, float]:
    counts = {}
    for line in text.splitlines():
        if line.startswith("http_server_request_duration_seconds_count"):
            counts[line.split('http_route="')[1].split('"')[0]] = float(line.split()[-1])
    return counts


@pytest.mark.parametrize(
    ("make", "path", "template"),
    [*((starlette_app, *case) for case in STARLETTE), *((fastapi_app, *case) for case in FASTAPI)],
)
@pytest.mark.parametrize("root_path", ["", "/proxy"])
async def test_the_label_is_the_full_template(tmp_path, make, path, template, root_path):
    (tmp_path / "file.txt").write_text("text")
    plugin, app = Plugin(), make(tmp_path)
    plugin.install(app)
    async with plugin.lifespan(app):
        for _ in range(2):
            await call(app, root_path + path, root_path=root_path)
        counted = routes_counted((await call(app, "/metrics")).body.decode())
    assert counted == {template: 2.0}


async def test_a_mount_without_a_prefix_adds_none():
    plugin, app = Plugin(), Starlette(routes=[Mount("", Router([Route("/empty/{id}", hello)]))])
    plugin.install(app)
    async with plugin.lifespan(app):
        await call(app, "/empty/1")
        await call(app, "/none")
        assert set(routes_counted((await call(app, "/metrics")).body.decode())) == {"/empty/{id}", "/{path}"}


async def test_host_routes_are_labelled_with_their_leaf(tmp_path):
    plugin, app = Plugin(), starlette_app(tmp_path)
    plugin.install(app)
    async with plugin.lifespan(app):
        await call(app, "/hosted/1", headers=[(b"host", b"api.test")])
        assert routes_counted((await call(app, "/metrics")).body.decode()) == {"/hosted/{id}": 1.0}


async def test_whatever_a_client_sends_the_series_stay_bounded(tmp_path):
    plugin, app = Plugin(), fastapi_app(tmp_path)
    plugin.install(app)
    async with plugin.lifespan(app):
        for number in range(300):
            await call(app, f"/nothing/{number}")
            await call(app, f"/items/{number}", method=f"METHOD{number}")
            await call(app, f"/sub/tenant{number}/z/1")
            await call(app, f"/v1/r/x/{number}/")
        text = (await call(app, "/metrics")).body.decode()
    assert set(routes_counted(text)) == {"", "/items/{id}", "/sub/{tenant}/z/{id}"}
    assert 'http_request_method="_OTHER"' in text
    assert "METHOD1" not in text


async def test_routes_added_after_the_start_are_known():
    plugin, app = Plugin(), FastAPI()
    plugin.install(app)
    async with plugin.lifespan(app):
        await call(app, "/docs")
        app.add_route("/late/{id}", hello)
        await call(app, "/late/1")
        assert "/late/{id}" in routes_counted((await call(app, "/metrics")).body.decode())


async def test_routers_that_leave_only_the_endpoint_are_understood():
    async def endpoint(scope, receive, send): ...

    async def old_router(scope, receive, send):
        scope["endpoint"] = endpoint
        await PlainTextResponse("old")(scope, receive, send)

    old_router.routes = [Route("/one/{id}", endpoint=endpoint), Route("/two/{id}", endpoint=endpoint)]  # type: ignore[attr-defined]  # apps have routes
    plugin = Plugin()
    async with plugin.lifespan(old_router):
        await call(PerfMiddleware(old_router, plugin), "/two/2")
        answer = await call(PerfMiddleware(old_router, plugin), "/metrics")
    assert routes_counted(answer.body.decode()) == {"/two/{id}": 1.0}
