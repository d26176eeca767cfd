from __future__ import annotations

import contextvars
import logging
import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient as FastAPIClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from tests.support import call, young_heap

from asgi_mlperf import NotRunning, PerfMiddleware, Plugin, Settings

pytestmark = pytest.mark.usefixtures("collector_as_found")


async def hello(request):
    return PlainTextResponse("hello")


def two_lines(plugin: Plugin, **options) -> Starlette:
    app = Starlette(routes=[Route("/", hello)], lifespan=plugin.lifespan, **options)
    app.add_middleware(PerfMiddleware, plugin=plugin)
    return app


def test_two_lines_serve_the_app_with_metrics_and_health():
    with TestClient(two_lines(Plugin())) as client:
        assert client.get("/").text == "hello"
        assert 'http_route="/"' in client.get("/metrics").text
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").json() == {"ready": True, "reasons": []}


def test_install_does_the_same_in_one_line():
    app = Starlette(routes=[Route("/", hello)])
    Plugin().install(app)
    with TestClient(app) as client:
        assert client.get("/").text == "hello"
        assert 'http_route="/"' in client.get("/metrics").text
        assert client.get("/readyz").status_code == 200


def test_installing_twice_installs_once():
    plugin, app = Plugin(), Starlette(routes=[Route("/", hello)])
    plugin.install(app)
    plugin.install(app)
    assert len(app.user_middleware) == 1
    with TestClient(app) as client:
        client.get("/")
        assert (
            'http_server_request_duration_seconds_count{http_request_method="GET",'
            in client.get("/metrics").text
        )


def test_install_on_top_of_the_two_lines_changes_nothing():
    plugin = Plugin()
    app = two_lines(plugin)
    plugin.install(app)
    assert len(app.user_middleware) == 1


def test_install_takes_only_apps_with_a_lifespan():
    async def bare(scope, receive, send): ...

    with pytest.raises(TypeError, match="takes a Starlette or FastAPI app, not function"):
        Plugin().install(bare)


def test_the_apps_own_lifespan_and_its_state_are_kept():
    events = []

    @asynccontextmanager
    async def own(app):
        events.append("start")
        yield {"model": "loaded"}
        events.append("stop")

    async def show(request):
        return PlainTextResponse(request.state.model)

    plugin = Plugin()
    app = Starlette(routes=[Route("/", show)], lifespan=plugin.wrap(own))
    app.add_middleware(PerfMiddleware, plugin=plugin)
    with TestClient(app) as client:
        assert client.get("/").text == "loaded"
        assert events == ["start"]
    assert events == ["start", "stop"]


@pytest.mark.parametrize("kind", ["async generator", "generator"])
def test_bare_generator_lifespans_are_wrapped_too(kind):
    events = []

    async def async_generator(app):
        events.append("start")
        yield {"kind": kind}
        events.append("stop")

    def generator(app):
        events.append("start")
        yield {"kind": kind}
        events.append("stop")

    async def show(request):
        return PlainTextResponse(request.state.kind)

    lifespan = Plugin().wrap(generator if kind == "generator" else async_generator)
    with TestClient(Starlette(routes=[Route("/", show)], lifespan=lifespan)) as client:
        assert client.get("/").text == kind
    assert events == ["start", "stop"]


def test_wrap_takes_none_for_no_lifespan():
    with TestClient(Starlette(routes=[Route("/", hello)], lifespan=Plugin().wrap(None))) as client:
        assert client.get("/").text == "hello"


@pytest.mark.filterwarnings(r"ignore:\s*on_event is deprecated")
@pytest.mark.parametrize("way", ["lifespan", "install"])
def test_on_event_handlers_still_run(way):
    plugin, events = Plugin(), []
    app = FastAPI(lifespan=plugin.lifespan) if way == "lifespan" else FastAPI()

    @app.on_event("startup")
    async def start():
        events.append("start")

    @app.on_event("shutdown")
    def stop():
        events.append("stop")

    plugin.install(app)
    with FastAPIClient(app):
        assert events == ["start"]
    assert events == ["start", "stop"]


@pytest.mark.parametrize("installed", ["before", "after"])
def test_lifespans_of_included_routers_still_run(installed):
    plugin, events = Plugin(), []

    @asynccontextmanager
    async def of_router(app):
        events.append("start")
        yield {"index": "built"}
        events.append("stop")

    router = APIRouter(lifespan=of_router)
    app = FastAPI()
    if installed == "before":
        plugin.install(app)
    app.include_router(router)
    if installed == "after":
        plugin.install(app)
    with FastAPIClient(app):
        assert events == ["start"]
    assert events == ["start", "stop"]


def test_a_mounted_app_is_measured_by_the_app_that_mounts_it():
    plugin = Plugin()
    inner = Starlette(routes=[Route("/x", hello)])
    plugin.install(inner)
    app = Starlette(routes=[Mount("/inner", inner)], lifespan=plugin.lifespan)
    app.add_middleware(PerfMiddleware, plugin=plugin)
    with TestClient(app) as client:
        assert client.get("/inner/x").text == "hello"
        metrics = client.get("/metrics").text
    counts = [
        line for line in metrics.splitlines() if line.startswith("http_server_request_duration_seconds_count")
    ]
    assert len(counts) == 1
    assert counts[0].endswith('http_response_status_code="200",http_route="/inner/x"} 1.0')


def test_without_a_lifespan_requests_pass_with_one_warning(caplog):
    plugin = Plugin()
    client = TestClient(two_lines(plugin))
    for _ in range(3):
        assert client.get("/").text == "hello"
        assert client.get("/metrics").status_code == 404
    (record,) = [record for record in caplog.records if record.name == "asgi_mlperf"]
    assert record.levelno == logging.WARNING
    assert "plugin.install(app)" in record.getMessage()
    assert "with TestClient(app)" in record.getMessage()


def test_run_and_batched_outside_the_lifespan_name_the_fix():
    plugin = Plugin()
    predict = plugin.batched(lambda items: items)

    async def run(request):
        await plugin.run(hash, 1)

    async def batch(request):
        await predict(1)

    client = TestClient(Starlette(routes=[Route("/run", run), Route("/batch", batch)]))
    for path in ("/run", "/batch"):
        with pytest.raises(NotRunning, match=r"lifespan=plugin\.lifespan"):
            client.get(path)


async def test_run_gives_results_exceptions_and_context():
    plugin, variable = Plugin(), contextvars.ContextVar("variable", default="unset")

    def add(first, second):
        return first + second, variable.get(), threading.current_thread() is threading.main_thread()

    def fail():
        raise ZeroDivisionError

    async with plugin.lifespan(Starlette()):
        variable.set("set")
        assert await plugin.run(add, 1, 2) == (3, "set", False)
        with pytest.raises(ZeroDivisionError) as caught:
            await plugin.run(fail)
        assert caught.traceback[-1].name == "fail"


async def test_run_works_in_the_apps_own_lifespan_on_the_way_in_and_out():
    plugin, seen = Plugin(), []

    @asynccontextmanager
    async def own(app):
        seen.append(await plugin.run(abs, -1))
        yield
        seen.append(await plugin.run(abs, -2))

    async with plugin.wrap(own)(Starlette()):
        pass
    assert seen == [1, 2]


async def test_warm_up_runs_after_the_apps_lifespan_and_before_readiness():
    plugin, events = Plugin(), []

    @asynccontextmanager
    async def own(app):
        events.append("model loaded")
        yield

    @plugin.warmup
    async def on_the_loop():
        events.append(f"async warm-up, ready: {(await call(app, '/readyz')).status}")

    @plugin.warmup
    def in_a_thread():
        events.append(f"warm-up in main thread: {threading.current_thread() is threading.main_thread()}")

    app = PerfMiddleware(Starlette(), plugin)
    async with plugin.wrap(own)(Starlette()):
        events.append(f"ready: {(await call(app, '/readyz')).status}")
    assert events == [
        "model loaded",
        "async warm-up, ready: 503",
        "warm-up in main thread: False",
        "ready: 200",
    ]


async def test_two_plugins_in_one_process_work_and_the_second_leaves_gc_and_threads(monkeypatch, caplog):
    monkeypatch.delenv("ASGI_MLPERF_GC__MODE")
    first, second = Plugin(), Plugin()
    for plugin in (first, second):
        PerfMiddleware(Starlette(), plugin)
    async with first.lifespan(Starlette()), second.lifespan(Starlette()):
        assert await first.run(abs, -1) == await second.run(abs, -1)
        warnings = [record.getMessage() for record in caplog.records if record.name == "asgi_mlperf"]
    assert warnings == [
        "another plugin of this process already rules native threads; this one leaves it alone",
        "another plugin of this process already rules garbage collection; this one leaves it alone",
    ]


async def test_a_lifespan_inside_the_same_plugins_lifespan_changes_nothing():
    plugin = Plugin()
    app = PerfMiddleware(Starlette(routes=[Route("/", hello)]), plugin)
    async with plugin.lifespan(Starlette()):
        async with plugin.lifespan(Starlette()):
            assert await plugin.run(abs, -1) == 1
        assert await plugin.run(abs, -1) == 1
        assert (await call(app)).status == 200


def test_one_plugin_serves_two_loops_at_once():
    plugin = Plugin()

    async def compute(request):
        return PlainTextResponse(str(await plugin.run(abs, -5)))

    app = Starlette(routes=[Route("/", compute)])
    plugin.install(app)
    with TestClient(app) as one, TestClient(app) as two:
        assert [client.get("/").text for client in (one, two, one)] == ["5", "5", "5"]


def test_disabled_is_a_stock_app(monkeypatch, caplog):
    import gc

    monkeypatch.delenv("ASGI_MLPERF_GC__MODE")
    monkeypatch.setenv("ASGI_MLPERF_ENABLED", "false")
    plugin, threads, sizes = Plugin(), [], []

    @plugin.batched(max_size=8)
    def predict(items):
        sizes.append(len(items))
        return [item * 2 for item in items]

    def work(value):
        threads.append(threading.current_thread().name)
        return value

    async def compute(request):
        found = (gc.get_threshold(), gc.get_freeze_count() > 1_000, threading.Thread.run)
        assert found == before
        return PlainTextResponse(f"{await plugin.run(work, 3)} {await predict(4)}")

    app = Starlette(routes=[Route("/", compute)], lifespan=plugin.lifespan)
    app.add_middleware(PerfMiddleware, plugin=plugin)
    before = (gc.get_threshold(), gc.get_freeze_count() > 1_000, threading.Thread.run)
    with TestClient(app) as client:
        assert client.get("/").text == "3 8"
        assert [client.get(path).status_code for path in ("/metrics", "/livez", "/readyz")] == [404, 404, 404]
    assert threads == ["AnyIO worker thread"]
    assert sizes == [1]
    assert caplog.records == []


async def test_disabled_batches_of_one_raise_returned_exceptions_and_await_coroutines():
    plugin = Plugin(Settings(enabled=False))

    @plugin.batched
    async def predict(items):
        return [ValueError("bad item")] if items == [0] else items

    assert await predict(1) == 1
    with pytest.raises(ValueError, match="bad item"):
        await predict(0)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_the_app_runs_as_if_without_the_plugin(anyio_backend, caplog):
    plugin = Plugin()
    predict = plugin.batched(lambda items: [item + 1 for item in items])
    app = Starlette(routes=[Route("/", hello)])
    plugin.install(app)
    async with app.router.lifespan_context(app):
        assert (await call(app)).body == b"hello"
        assert (await call(app, "/metrics")).status == 404
        assert await plugin.run(abs, -1) == 1
        assert await predict(1) == 2
    assert ["needs asyncio or uvloop" in record.getMessage() for record in caplog.records] == [True]


async def own_page(request=None):
    return PlainTextResponse("own")


def included(app: FastAPI) -> None:
    router = APIRouter()
    router.add_route("/metrics", own_page)
    app.include_router(router)


def prefixed(app: FastAPI) -> None:
    router = APIRouter()
    router.get("")(own_page)
    app.include_router(router, prefix="/metrics")


WAYS = {
    "a route": lambda app: app.add_route("/metrics", own_page),
    "a mount": lambda app: app.mount("/metrics", Starlette(routes=[Route("/", own_page)])),
    "an included router": included,
    "an included router with a prefix": prefixed,
    "a route of a mount": lambda app: app.mount("", Starlette(routes=[Route("/metrics", own_page)])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["before", "in the lifespan"])
def test_the_apps_own_metrics_page_wins(way, when):
    @asynccontextmanager
    async def lifespan(app):
        if when == "in the lifespan":
            WAYS[way](app)
        yield

    app = FastAPI(lifespan=lifespan)
    Plugin().install(app)
    if when == "before":
        WAYS[way](app)
    with FastAPIClient(app) as client:
        assert client.get("/metrics", follow_redirects=True).text == "own"
        assert client.get("/readyz").json()["ready"] is True


async def test_a_lifespan_without_the_middleware_says_so(caplog):
    async with Plugin().lifespan(Starlette()):
        pass
    assert "runs without its middleware" in caplog.text


def test_install_completes_what_is_there():
    plugin = Plugin()
    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(PerfMiddleware, plugin=plugin)
    plugin.install(app)
    with TestClient(app) as client:
        assert client.get("/readyz").status_code == 200
    assert len(app.user_middleware) == 1


async def test_warm_ups_may_return_coroutines_and_run_in_a_stock_app_too():
    for enabled in (True, False):
        plugin = Plugin(Settings(enabled=enabled))
        warmed: list[list[int]] = []

        def model(items: list[int], warmed: list[list[int]] = warmed) -> list[int]:
            warmed.append(items)
            return items

        plugin.warmup(partial(plugin.batched(model), 7))
        async with plugin.lifespan(Starlette()):
            assert warmed == [[7]]


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
async def test_requests_leave_no_cycles_behind(kind):
    import gc

    make = FastAPI if kind == "fastapi" else Starlette
    plain, installed, plugin = make(), make(), Plugin(Settings(gc={"mode": "off"}))
    for app in (plain, installed):
        app.router.add_route("/", hello)
    plugin.install(installed)
    async with plugin.lifespan(installed):
        found = {}
        for name, app in (("stock", plain), ("plugin", installed)):
            for _ in range(3):
                await call(app)
            with young_heap():
                gc.collect()
                for _ in range(50):
                    await call(app)
                found[name] = gc.collect()
    assert found["plugin"] <= found["stock"] + 5


def test_endpoints_answer_only_get_and_head_and_mind_the_root_path():
    plugin = Plugin()
    app = two_lines(plugin)
    with TestClient(app, root_path="/api") as client:
        assert client.get("/api/readyz").status_code == 200
        assert client.head("/api/readyz").status_code == 200
        assert client.post("/api/readyz").status_code == 404


def test_the_json_settings_reach_responses():
    from asgi_mlperf import ORJSONResponse

    async def nan(request):
        return ORJSONResponse({"y": float("nan")})

    plugin = Plugin(Settings(json={"nan": "string"}))
    app = Starlette(routes=[Route("/", nan)])
    plugin.install(app)
    with TestClient(app) as client:
        assert client.get("/").json() == {"y": "NaN"}


def test_switched_off_features_are_absent():
    plugin = Plugin(Settings(metrics={"enabled": False}, gc={"mode": "off"}, threads={"enabled": False}))
    app = two_lines(plugin)
    with TestClient(app) as client:
        assert client.get("/").text == "hello"
        assert client.get("/metrics").status_code == 404
        assert client.get("/readyz").status_code == 200
