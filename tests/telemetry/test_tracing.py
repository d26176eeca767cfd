"""One request, explained: its id, its timing header, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import types

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from tests.support import call, until

from asgi_mlperf import ORJSONResponse, Plugin, Settings, add_request_id, current_request_id
from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.telemetry.explained import SlowLog
from asgi_mlperf.telemetry.timeline import Timeline


async def tell(request):
    return PlainTextResponse(current_request_id())


def served(*routes, plugin: Plugin | None = None, **settings) -> tuple[Plugin, Starlette]:
    plugin = plugin or Plugin(Settings(**settings))
    app = Starlette(routes=list(routes) or [Route("/", tell)])
    plugin.install(app)
    return plugin, app


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("x-request-id", "abc-123")], "abc-123"),
        ([("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")], TRACE),
        ([("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"), ("x-request-id", "mine")], "mine"),
        ([("x-request-id", "two words\n"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")], TRACE),
        ([("x-request-id", "x" * 129)], None),
        ([("x-request-id", "")], None),
        ([("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01")], None),
        ([], None),
    ],
)
async def test_the_id_is_the_one_that_came_if_it_is_harmless_else_a_new_one(headers, expected):
    plugin, app = served()
    async with plugin.lifespan(app):
        sent = [(name.encode(), value.encode()) for name, value in headers]
        answer = await call(app, headers=sent)
    told = answer.body.decode()
    assert told == expected if expected else re.fullmatch("[0-9a-f]{32}", told)
    assert "x-request-id" not in answer.headers


async def test_the_id_is_returned_and_in_every_log_record_where_that_is_asked_for(caplog):
    async def later():
        logging.getLogger("app").warning("background")

    async def log(request):
        logging.getLogger("app").warning("handler")
        await plugin.run(logging.getLogger("app").warning, "model")
        return PlainTextResponse("", background=BackgroundTask(later))

    plugin, app = served(Route("/", log), tracing={"request_id": True})
    async with plugin.lifespan(app):
        answer = await call(app, headers=[(b"x-request-id", b"abc")])
        logging.getLogger("app").warning("outside")
    assert answer.headers["x-request-id"] == "abc"
    ids = {record.getMessage(): record.request_id for record in caplog.records if record.name == "app"}
    assert ids == {"handler": "abc", "model": "abc", "background": "abc", "outside": "-"}
    assert not hasattr(logging.makeLogRecord({}), "request_id")


async def test_a_factory_that_came_on_top_of_ours_stays():
    found = logging.getLogRecordFactory()
    plugin, app = served(tracing={"request_id": True})
    try:
        async with plugin.lifespan(app):
            ours = logging.getLogRecordFactory()

            def theirs(*args, **options):
                return ours(*args, **options)

            logging.setLogRecordFactory(theirs)
        assert logging.getLogRecordFactory() is theirs
    finally:
        logging.setLogRecordFactory(found)


async def test_an_app_that_returns_an_id_of_its_own_keeps_it():
    async def own(request):
        return PlainTextResponse("", headers={"X-Request-ID": "own"})

    plugin, app = served(Route("/", own), tracing={"request_id": True})
    async with plugin.lifespan(app):
        answer = await call(app)
    assert [value for name, value in answer.messages[0]["headers"] if name.lower() == b"x-request-id"] == [
        b"own"
    ]


def fake(name: str, **attributes) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    return module


@pytest.mark.parametrize(
    ("package", "theirs", "returned"),
    [
        ("asgi_correlation_id.context", "theirs", None),
        ("structlog.contextvars", "theirs", "theirs"),
        ("structlog.contextvars", "two\r\nlines", None),
    ],
)
async def test_the_id_of_another_package_is_used_and_not_returned_twice(
    monkeypatch, package, theirs, returned
):
    variable = types.SimpleNamespace(get=lambda: theirs)
    module = fake(package, correlation_id=variable, get_contextvars=lambda: {"request_id": theirs})
    monkeypatch.setitem(sys.modules, package, module)
    plugin, app = served(tracing={"request_id": True})
    async with plugin.lifespan(app):
        answer = await call(app, headers=[(b"x-request-id", b"abc")])
    assert answer.body.decode() == theirs
    assert answer.headers.get("x-request-id") == returned


async def test_structlog_gets_the_id_from_a_processor():
    assert add_request_id(None, "info", {"event": "outside"}) == {"event": "outside"}
    seen = []

    async def log(request):
        seen.append(add_request_id(None, "info", {"event": "inside"}))
        seen.append(add_request_id(None, "info", {"request_id": "bound"}))
        return PlainTextResponse("")

    plugin, app = served(Route("/", log))
    async with plugin.lifespan(app):
        await call(app, headers=[(b"x-request-id", b"abc")])
    assert seen == [{"event": "inside", "request_id": "abc"}, {"request_id": "bound"}]


def timing(answer) -> dict[str, str]:
    parts = [part.strip().split(";") for part in answer.headers["server-timing"].split(",")]
    return {name: value.partition("=")[2].strip('"') for name, value in parts}


class Model:
    """A function that waits at a gate, and a batched one behind the same slot."""

    def __init__(self, plugin: Plugin):
        self.entered, self.gate = threading.Event(), threading.Event()
        self.batched = plugin.batched(self.double)

    def wait(self):
        self.entered.set()
        self.gate.wait(10)

    @staticmethod
    def double(items):
        return [item * 2 for item in items]


async def test_server_timing_says_what_a_response_waited_for():
    plugin = Plugin(Settings(pool={"threads": 1}, tracing={"server_timing": True}))
    model = Model(plugin)

    async def predict(request):
        result = await model.batched(21)
        await plugin.run(abs, -1)
        return ORJSONResponse({"result": result})

    plugin, app = served(Route("/", predict), plugin=plugin)
    async with plugin.lifespan(app):
        first = asyncio.create_task(plugin.run(model.wait))
        await until(model.entered.is_set)
        second = asyncio.create_task(call(app))
        await until(
            lambda: plugin._engine().pool()._admission.running and len(plugin._engine().pool()._admission)
        )
        model.gate.set()
        told = timing(await second)
        await first
    assert {"total", "queue", "run", "batch", "encode"} <= told.keys()
    assert told["batch"] == "1"
    assert float(told["total"]) >= float(told["queue"]) + float(told["run"])


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ((b"x-explain", b"open sesame"), False),
        ((b"x-other", b"sesame"), False),
        ((b"x-explain", b"sesame"), True),
    ],
)
async def test_server_timing_can_be_had_for_a_secret(header, told):
    plugin, app = served(tracing={"server_timing_secret": "X-Explain: sesame"})
    async with plugin.lifespan(app):
        answer = await call(app, headers=[header])
        assert "server-timing" not in (await call(app)).headers
    assert ("server-timing" in answer.headers) == told


@pytest.mark.parametrize("secret", ["sesame", "x-explain: two words", ""])
def test_a_secret_that_is_no_header_is_refused(secret):
    with pytest.raises(ConfigurationError, match="name: value"):
        Settings(tracing={"server_timing_secret": secret})


async def test_a_slow_request_is_logged_with_whom_it_waited_behind(caplog):
    plugin = Plugin(Settings(pool={"threads": 1}, tracing={"slow_ms": 0.001}))
    model = Model(plugin)

    async def predict(request):
        return PlainTextResponse(str(await plugin.run(abs, -1)))

    plugin, app = served(Route("/items/{id}", predict), plugin=plugin)
    async with plugin.lifespan(app):
        first = asyncio.create_task(plugin.run(model.wait))
        await until(model.entered.is_set)
        second = asyncio.create_task(call(app, "/items/1", headers=[(b"x-request-id", b"abc")]))
        await until(lambda: len(plugin._engine().pool()._admission))
        model.gate.set()
        await asyncio.gather(first, second)
    (record,) = (record for record in caplog.records if record.name == "asgi_mlperf.slow")
    fields = record.slow_request
    assert (fields["request_id"], fields["method"], fields["route"], fields["status"]) == (
        "abc",
        "GET",
        "/items/{id}",
        200,
    )
    assert fields["behind"] == "abs in default: 1 of Model.wait running, 1 waiting"
    assert fields["total_ms"] >= fields["queue_ms"] + fields["run_ms"] > 0
    assert "route=/items/{id}" in record.getMessage()
    assert "behind='abs in default" in record.getMessage()


async def test_a_quick_request_and_a_long_stream_that_began_quickly_are_not_slow(caplog, monkeypatch):
    now = [1.0]
    monkeypatch.setattr("asgi_mlperf.runtime.process.clock", lambda: now[0])

    async def stream(request):
        async def parts():
            yield b"first"
            now[0] += 100
            yield b"last"

        return StreamingResponse(parts())

    plugin, app = served(Route("/stream", stream), Route("/", tell), tracing={"slow_ms": 1_000})
    async with plugin.lifespan(app):
        await call(app, "/stream")
        await call(app)
    assert "slow request" not in caplog.text


def test_the_log_of_slow_requests_has_ten_lines_a_second_at_most(caplog):
    now = [0.0]
    explanation = types.SimpleNamespace(fields=lambda: {"empty": "", "text": 'a "b"'})
    explainer = types.SimpleNamespace(explain=lambda exchange, until: explanation)
    slow = SlowLog(explainer, threshold_s=1.0, route_of=lambda _: "/", clock=lambda: now[0])
    exchange = types.SimpleNamespace(
        scope={"method": "GET"},
        status=200,
        started_at=0.0,
        ended_at=2.0,
        streamed_at=0.0,
        noted=lambda: types.SimpleNamespace(request_id="abc"),
    )
    for _ in range(15):
        slow.ended(exchange)
    assert len(caplog.records) == 10
    now[0] = 1.0
    slow.ended(exchange)
    assert [record.getMessage() for record in caplog.records][10:] == [
        "5 more slow requests were not written of",
        "slow request: request_id=abc method=GET route=/ status=200 empty='' text='a \"b\"'",
    ]


@pytest.mark.parametrize(
    ("began", "ended", "lost"),
    [(0.0, 1.0, 0.0), (0.0, 2.5, 0.5), (2.5, 2.75, 0.25), (0.0, 9.0, 1.5), (3.5, 9.0, 0.5), (6.0, 9.0, 0.0)],
)
def test_what_was_lost_in_a_span_of_time_is_known(began, ended, lost):
    timeline = Timeline()
    timeline.note(3.0, 1.0)
    timeline.note(5.0, 0.5)
    assert timeline.between(began, ended) == pytest.approx(lost)


async def test_collections_and_a_blocked_loop_show_in_the_explanation():
    import gc
    import time

    async def collect(request):
        gc.collect()
        await asyncio.sleep(0.15)  # past the next look at the clock
        time.sleep(0.12)  # noqa: ASYNC251 - what a blocked event loop is
        return PlainTextResponse("")

    plugin, app = served(Route("/", collect), tracing={"server_timing": True}, gc={"mode": "off"})
    async with plugin.lifespan(app):
        told = timing(await call(app))
    assert float(told["gc"]) > 0
    assert float(told["lag"]) > 10


async def test_encodings_have_a_series_by_format():
    async def json(request):
        return ORJSONResponse({"a": 1})

    plugin, app = served(Route("/", json))
    async with plugin.lifespan(app):
        await call(app)
        text = (await call(app, "/metrics")).body.decode()
    assert 'asgi_mlperf_encode_seconds_count{format="json"} 1.0' in text


async def test_requests_are_explained_without_metrics_too():
    plugin, app = served(metrics={"enabled": False}, tracing={"server_timing": True})
    async with plugin.lifespan(app):
        assert "total" in timing(await call(app))
        assert (await call(app, "/metrics")).status == 404
