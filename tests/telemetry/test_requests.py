"""What is counted of each request, whatever becomes of it."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from typing import Any

import anyio.lowlevel
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from tests.support import call, http_scope

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.telemetry.cells import SIZES
from asgi_mlperf.telemetry.tallies import Tally

BOUNDS = (0.5, 1.0, 2.5, 10.0)


async def hello(request):
    return PlainTextResponse("hello")


async def echo(request):
    return PlainTextResponse(await request.body())


async def unread(request):
    return PlainTextResponse("")


async def stream(request):
    async def parts():
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
            yield b"x" * 300

    return StreamingResponse(parts())


async def crash(request):
    raise RuntimeError("model broke")


def served(*routes, **settings) -> tuple[Plugin, Starlette]:
    plugin = Plugin(Settings(**settings))
    app = Starlette(routes=list(routes))
    plugin.install(app)
    return plugin, app


async def samples(app) -> dict[str, dict[Any, float]]:
    """Every sample of a scrape by name and label values."""
    text = (await call(app, "/metrics")).body.decode()
    found: dict[str, dict[Any, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def one_sample(app, name) -> float:
    (value,) = (await samples(app))[name].values()
    return value


async def post(app, path, *parts: bytes) -> None:
    unread = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]

    async def receive():
        return unread.pop(0)

    async def send(message): ...

    await app(http_scope(path, "POST"), receive, send)


async def test_body_sizes_are_those_that_were_read_and_sent():
    plugin, app = served(Route("/", echo, methods=["POST"]))
    async with plugin.lifespan(app):
        await post(app, "/", b"x" * 150, b"y" * 1_000)
        found = await samples(app)
    for name in ("http_server_request_body_size_bytes", "http_server_response_body_size_bytes"):
        assert list(found[f"{name}_sum"].values()) == [1150.0]
        buckets = {float(dict(labels)["le"]): count for labels, count in found[f"{name}_bucket"].items()}
        assert buckets == {bound: float(bound >= 1150) for bound in (*SIZES, math.inf)}


async def test_a_body_that_the_app_does_not_read_counts_as_empty():
    plugin, app = served(Route("/", unread, methods=["POST"]))
    async with plugin.lifespan(app):
        await post(app, "/", b"x" * 150)
        assert await one_sample(app, "http_server_request_body_size_bytes_sum") == 0
        assert await one_sample(app, "http_server_request_body_size_bytes_count") == 1


async def test_a_streams_first_byte_has_a_series_of_its_own_and_other_responses_are_not_in_it():
    plugin, app = served(Route("/stream/{id}", stream), Route("/", hello))
    async with plugin.lifespan(app):
        await call(app, "/stream/1")
        await call(app, "/")
        found = await samples(app)
    assert found["asgi_mlperf_first_byte_seconds_count"] == {(("http_route", "/stream/{id}"),): 1.0}
    (first_byte,) = found["asgi_mlperf_first_byte_seconds_sum"].values()
    whole = found["http_server_request_duration_seconds_sum"]
    assert (
        0
        < first_byte
        < next(took for labels, took in whole.items() if ("http_route", "/stream/{id}") in labels)
    )
    assert 1200.0 in found["http_server_response_body_size_bytes_sum"].values()


async def test_a_background_task_is_in_its_own_series_and_not_in_the_duration(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("asgi_mlperf.runtime.process.clock", lambda: now[0])

    async def later():
        now[0] += 2.5

    async def respond(request):
        return PlainTextResponse("done", background=BackgroundTask(later))

    plugin, app = served(Route("/quick", hello), Route("/{id}", respond))
    async with plugin.lifespan(app):
        await call(app, "/1")
        await call(app, "/quick")
        found = await samples(app)
    assert found["asgi_mlperf_background_seconds_sum"] == {(("http_route", "/{id}"),): 2.5}
    assert set(found["http_server_request_duration_seconds_sum"].values()) == {0.0}


async def test_what_the_app_still_does_for_a_client_that_left_is_no_background_task(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("asgi_mlperf.runtime.process.clock", lambda: now[0])

    def leave(message):
        if message.get("body"):
            raise OSError("the client left")

    async def respond(request):
        async def stubborn(scope, receive, send):
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            except OSError:
                now[0] += 5

        return stubborn

    plugin, app = served(Route("/", respond))
    async with plugin.lifespan(app):
        await call(app, on_send=leave)
        assert now == [5.0]
        found = await samples(app)
    assert "asgi_mlperf_background_seconds_count" not in found


async def test_a_file_that_the_server_sends_by_itself_ends_the_request(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x" * 5_000)

    async def file(request):
        return FileResponse(tmp_path / "model.bin")

    plugin, app = served(Route("/", file))
    async with plugin.lifespan(app):
        answer = await call(app, "/", extensions={"http.response.pathsend": {}})
        assert answer.messages[-1]["type"] == "http.response.pathsend"
        assert await one_sample(app, "http_server_response_body_size_bytes_sum") == 5_000


async def test_excluded_routes_are_in_no_series():
    plugin, app = served(Route("/quiet", stream), Route("/", hello), metrics={"exclude": ["/quiet"]})
    async with plugin.lifespan(app):
        await call(app, "/quiet")
        text = (await call(app, "/metrics")).body.decode()
    assert "quiet" not in text


@given(st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS), max_size=40))
def test_measurements_together_are_counted_as_one_by_one(amounts):
    together, alone = Tally(BOUNDS), Tally(BOUNDS)
    together.observe_all(amounts)
    for amount in amounts:
        alone.observe(amount)
    assert together.counts == alone.counts
    assert together.total == pytest.approx(alone.total)


KNOWN = ("GET", "POST", "PUT", "_OTHER")


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # one loop is enough for so many
async def test_a_hundred_thousand_random_requests_make_a_bounded_number_of_series():
    plugin, app = served(
        Route("/items/{id}", hello, methods=["GET", "POST"]),
        Mount("/tenants/{tenant}", routes=[Route("/x/{id}", hello)]),
        metrics={"default_registry": False},
    )
    rng, count = random.Random(8), 100_000

    async def receive(): ...
    async def send(message): ...

    async with plugin.lifespan(app):
        for _ in range(count // 5):
            word, method = (
                f"{rng.getrandbits(48):x}",
                rng.choice(["GET", "POST", f"M{rng.getrandbits(40):x}"]),
            )
            for path in (
                f"/items/{word}",
                f"/{word}",
                f"/items/{word}/",
                f"/tenants/{word}/x/{word}",
                f"/tenants/{word}/{word}",
            ):
                scope = http_scope(path, method, headers=[(b"host", word.encode())])
                await app(scope, receive, send)
        found = (await samples(app))["http_server_request_duration_seconds_count"]
    assert sum(found.values()) == count
    labels = [dict(labels) for labels in found]
    assert {label["http_route"] for label in labels} <= {
        "",
        "/items/{id}",
        "/tenants/{tenant}/x/{id}",
        "/tenants/{tenant}/{path}",
    }
    assert {label["http_request_method"] for label in labels} == {"GET", "POST", "_OTHER"}
    assert len(found) <= 4 * 3 * 4


async def test_whatever_happens_to_requests_each_is_counted_once_and_none_stays_in_flight():
    rng = random.Random(7)
    plugin, app = served(
        Route("/hello", hello),
        Route("/stream", stream),
        Route("/crash", crash),
        Route("/echo", echo, methods=["POST"]),
    )

    async def one(number: int) -> None:
        path, fate = rng.choice(["/hello", "/stream", "/crash", "/echo", "/none"]), rng.random()
        steps = rng.randrange(6)
        parts = [{"type": "http.request", "body": b"x", "more_body": True}] * 2

        async def receive():
            await anyio.lowlevel.checkpoint()
            if parts:
                return parts.pop()
            return {"type": "http.disconnect"} if fate < 0.3 else {"type": "http.request", "body": b""}

        async def send(message):
            nonlocal steps
            await anyio.lowlevel.checkpoint()
            steps -= 1
            if fate > 0.8 and steps <= 0:
                raise OSError("gone")

        scope = http_scope(path, "POST" if path == "/echo" else "GET")
        task = asyncio.ensure_future(app(scope, receive, send))
        for _ in range(rng.randrange(12)):
            await anyio.lowlevel.checkpoint()
        if 0.3 <= fate < 0.5:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async with plugin.lifespan(app):
        await asyncio.gather(*(one(number) for number in range(600)))
        found = await samples(app)
        assert plugin.serving().traffic.in_flight == 0
    statuses: Counter[str] = Counter()
    for labels, count in found["http_server_request_duration_seconds_count"].items():
        statuses[dict(labels)["http_response_status_code"]] += int(count)
    # A request that is cancelled before its first step never reached the app.
    assert 500 < sum(statuses.values()) <= 600
    assert set(statuses) == {"200", "404", "499", "500"}
    assert found["http_server_active_requests"] == {(): 0.0}
    for name in ("request", "response"):
        assert sum(found[f"http_server_{name}_body_size_bytes_count"].values()) == sum(statuses.values())


def side_by_side():
    """The same app with us and with the package whose names we take."""
    from prometheus_fastapi_instrumentator import Instrumentator, metrics

    def app() -> FastAPI:
        made = FastAPI()
        made.add_api_route("/items/{id}", hello_fastapi, methods=["GET", "POST"])
        made.add_api_route("/plain", hello_fastapi)
        return made

    registry = CollectorRegistry()
    theirs = app()
    Instrumentator().add(metrics.default(registry=registry)).instrument(theirs)
    ours, plugin = app(), Plugin(Settings(metrics={"preset": "fastapi-instrumentator"}))
    plugin.install(ours)
    return plugin, ours, theirs, registry


async def hello_fastapi(fail: bool = False):
    if fail:
        raise RuntimeError("model broke")
    return "hello"


async def test_the_instrumentators_preset_counts_what_the_instrumentator_counts():
    plugin, ours, theirs, registry = side_by_side()
    async with plugin.lifespan(ours):
        for app in (ours, theirs):
            for number in range(3):
                await call(app, f"/items/{number}")
            await call(app, "/items/1", "POST")
            await call(app, "/plain")
            await call(app, "/none")
            with pytest.raises(RuntimeError):
                await call(app, "/plain", query_string=b"fail=1")
        shown = await samples(ours)
    expected: dict[str, dict[Any, float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                expected.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    for name, values in expected.items():
        assert shown[name].keys() == values.keys(), name
        if not name.endswith(("seconds_sum", "seconds_bucket", "size_bytes_sum")):  # times differ
            assert shown[name] == values, name
    sent = "http_response_size_bytes_sum"
    # There the 500 that the server answers for a crashed app has no length either.
    assert shown[sent] == expected[sent]
    assert "http_server_request_duration_seconds_count" not in shown


@pytest.mark.parametrize("fate", ["closed", "crashed", "cancelled"])
async def test_a_websocket_is_counted_once_by_its_template_however_it_ends(fate):
    entered = asyncio.Event()

    async def echo(websocket):
        await websocket.accept()
        entered.set()
        if fate == "crashed":
            raise RuntimeError("model broke")
        if fate == "cancelled":
            await anyio.sleep_forever()
        await websocket.close()

    plugin, app = served(Mount("/in/{tenant}", routes=[WebSocketRoute("/echo/{id}", echo)]))
    async with plugin.lifespan(app):
        scope = {**http_scope("/in/a/echo/1"), "type": "websocket", "subprotocols": []}

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message): ...

        task = asyncio.create_task(app(scope, receive, send))
        await entered.wait()
        if fate == "cancelled":
            assert (await samples(app))["asgi_mlperf_active_websockets"] == {(): 1.0}
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = await samples(app)
    assert found["asgi_mlperf_websocket_seconds_count"] == {(("http_route", "/in/{tenant}/echo/{id}"),): 1.0}
    assert found["asgi_mlperf_active_websockets"] == {(): 0.0}
    assert "http_server_request_duration_seconds_count" not in found
