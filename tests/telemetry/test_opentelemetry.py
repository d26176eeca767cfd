"""What OpenTelemetry is told, and what is left to others."""

from __future__ import annotations

import builtins
import logging
import sys
import threading
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry import metrics, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import REGISTRY, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.support import call

from asgi_mlperf import ORJSONResponse, Plugin, Settings
from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.hooks import ModelCall
from asgi_mlperf.telemetry.opentelemetry import Mirror, Name, Spans, attributes_of


class FakeMeter:
    """Keeps what is told to each instrument."""

    def __init__(self):
        self.told: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        self.units: dict[str, str] = {}
        self.functions: dict[str, Any] = {}

    def _make(self, name, unit="", description="", **_):
        told = self.told.setdefault(name, [])
        self.units[name] = unit

        class Instrument:
            @staticmethod
            def tell(amount, attributes):
                told.append((amount, dict(attributes)))

            record = add = set = tell

        return Instrument()

    create_histogram = create_counter = create_gauge = _make

    def create_observable_gauge(self, name, callbacks, unit="", description=""):
        self.functions[name] = callbacks[0]


@pytest.fixture
def meter(monkeypatch) -> FakeMeter:
    made = FakeMeter()
    monkeypatch.setattr(metrics, "get_meter", lambda *_: made)
    return made


def served(*routes, **settings) -> tuple[Plugin, Starlette]:
    plugin = Plugin(Settings(tracing={"otel": True}, **settings))
    app = Starlette(routes=list(routes))
    plugin.install(app)
    return plugin, app


async def hello(request):
    return ORJSONResponse({"hello": "world"})


async def test_every_measurement_is_told_to_opentelemetry_too(meter):
    plugin, app = served(Route("/items/{id}", hello))
    async with plugin.lifespan(app):
        await plugin.run(abs, -1)
        await call(app, "/items/1")
        await call(app, "/none")
        text = (await call(app, "/metrics")).body.decode()
    assert "http_server_request_duration_seconds_count" in text
    ((seconds, attributes), (_, unmatched)) = meter.told["http.server.request.duration"]
    assert seconds > 0
    assert attributes == {
        "http.request.method": "GET",
        "http.route": "/items/{id}",
        "http.response.status_code": 200,
    }
    assert unmatched == {"http.request.method": "GET", "http.response.status_code": 404}
    assert meter.told["http.server.response.body.size"][0] == (17, attributes)
    assert [told[1] for told in meter.told["asgi_mlperf.inference_run"]] == [{"pool": "default"}]
    assert meter.told["asgi_mlperf.encode"][0][1] == {"format": "json"}
    assert meter.told["asgi_mlperf.cpu_budget_cores"]
    (observation,) = meter.functions["http.server.active_requests"](None)
    assert observation.value == 0


async def test_counters_are_told_too(meter):
    plugin, app = served(pool={"threads": 1, "max_queue": 0})
    gate = threading.Event()
    async with plugin.lifespan(app):
        plugin._engine().pool().observers.refused("queue_full")
        gate.set()
    assert meter.told["asgi_mlperf.refused"] == [(1, {"pool": "default", "reason": "queue_full"})]


@pytest.mark.parametrize(
    ("ours", "theirs", "unit"),
    [
        ("http_server_request_duration_seconds", "http.server.request.duration", "s"),
        ("http_server_request_body_size_bytes", "http.server.request.body.size", "By"),
        ("asgi_mlperf_memory_rss_bytes", "asgi_mlperf.memory_rss", "By"),
        ("asgi_mlperf_batch_size", "asgi_mlperf.batch_size", "1"),
    ],
)
def test_names_are_translated_so_that_exporters_translate_them_back(ours, theirs, unit):
    assert Name.of(ours) == (theirs, unit)


def test_an_empty_label_is_no_attribute():
    assert attributes_of(("http_route", "pool"), ("", "default")) == {"pool": "default"}


async def test_what_fastapi_measures_itself_is_left_to_it_and_one_line_says_so(meter, caplog):
    app, plugin = FastAPI(), Plugin(Settings(tracing={"otel": True}))
    plugin.install(app)
    with caplog.at_level(logging.INFO, logger="asgi_mlperf"):
        async with plugin.lifespan(app):
            await call(app, "/none")
    (left,) = [record.getMessage() for record in caplog.records if "are left to" in record.getMessage()]
    assert left.startswith(
        "http_server_active_requests, http_server_request_duration_seconds are left to FastAPI"
    )
    assert "http.server.request.duration" not in meter.told
    assert "http.server.active_requests" not in meter.functions
    assert meter.told["http.server.response.body.size"]


async def test_a_fastapi_app_whose_own_metrics_are_off_is_measured(meter):
    app, plugin = FastAPI(telemetry={"metrics": False}), Plugin(Settings(tracing={"otel": True}))
    plugin.install(app)
    async with plugin.lifespan(app):
        await call(app, "/none")
    assert meter.told["http.server.request.duration"]


async def test_an_app_that_opentelemetry_instruments_keeps_all_its_request_series(meter):
    plugin, app = served(Route("/", hello))
    vars(app)["_is_instrumented_by_opentelemetry"] = True
    async with plugin.lifespan(app):
        await call(app)
    assert not [name for name in {**meter.told, **meter.functions} if name.startswith("http.")]


async def test_so_does_one_with_its_middleware(meter):
    class Middleware:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(scope, receive, send)

    Middleware.__module__ = "opentelemetry.instrumentation.asgi"
    plugin, app = served(Route("/", hello))
    app.add_middleware(Middleware)
    async with plugin.lifespan(app):
        await call(app)
    assert "http.server.request.duration" not in meter.told


async def test_a_series_that_an_exporter_shows_in_the_default_registry_is_shown_once(caplog):
    theirs = Gauge("http_server_active_requests", "An exporter's.")
    try:
        plugin, app = Plugin(), Starlette()
        plugin.install(app)
        with caplog.at_level(logging.INFO, logger="asgi_mlperf"):
            async with plugin.lifespan(app):
                for _ in range(2):
                    text = (await call(app, "/metrics")).body.decode()
    finally:
        REGISTRY.unregister(theirs)
    assert text.count("# TYPE http_server_active_requests gauge") == 1
    assert "# HELP http_server_active_requests An exporter's." in text
    assert caplog.text.count("http_server_active_requests is left to") == 1


CONTEXT = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class RecordingSpan(NonRecordingSpan):
    def is_recording(self):
        return True


class FakeTracer:
    def __init__(self):
        self.spans: list[tuple[str, int, int, dict[str, Any]]] = []

    def start_span(self, name, attributes, start_time):
        spans = self.spans

        class Span:
            @staticmethod
            def end(end_time):
                spans.append((name, start_time, end_time, dict(attributes)))

        return Span()


def spans_of(made: ModelCall, span: Any) -> list[tuple[str, int, dict[str, Any]]]:
    tracer = FakeTracer()
    spans = Spans(lambda: 0.0, tracer)
    with trace.use_span(span):
        spans.called(made)
    return [
        (name, round((ended - began) / 1e6), attributes) for name, began, ended, attributes in tracer.spans
    ]


def a_call(**more: Any) -> ModelCall:
    given = {"queued_at": 1.0, "started_at": 1.25, "ended_at": 1.75, "batch_size": 0, "behind": ""}
    return ModelCall(name="embed", pool="default", **{**given, **more})


WHO = {"asgi_mlperf.function": "embed", "asgi_mlperf.pool": "default"}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (a_call(), [("queue", 250, WHO), ("run", 500, WHO)]),
        (a_call(batch_size=8), [("queue", 250, WHO), ("batch", 500, {**WHO, "asgi_mlperf.batch_size": 8})]),
        (a_call(started_at=0.0), [("queue", 750, WHO)]),
    ],
)
def test_a_call_has_spans_for_its_wait_and_its_run(made, expected):
    assert spans_of(made, RecordingSpan(CONTEXT)) == expected


def test_a_call_whose_request_is_not_recorded_has_no_spans():
    assert spans_of(a_call(), NonRecordingSpan(CONTEXT)) == []


async def test_calls_of_a_request_have_spans_under_the_requests_span(meter, monkeypatch):
    tracer = FakeTracer()
    monkeypatch.setattr(trace, "get_tracer", lambda *_: tracer)

    async def predict(request):
        with trace.use_span(RecordingSpan(CONTEXT)):
            await plugin.run(abs, -1)
        return PlainTextResponse("")

    plugin = Plugin(Settings(tracing={"otel": True, "slow_ms": 10_000}))
    app = Starlette(routes=[Route("/", predict)])
    plugin.install(app)
    async with plugin.lifespan(app):
        await call(app)
    assert [span[0] for span in tracer.spans] == ["queue", "run"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (TraceFlags.SAMPLED, {"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}"}),
        (TraceFlags.DEFAULT, None),
    ],
)
def test_an_exemplar_is_a_trace_that_is_kept(flags, expected):
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(flags))
    with trace.use_span(NonRecordingSpan(context)):
        assert Mirror.trace() == expected
    assert Mirror.trace() is None


async def test_a_scrape_in_openmetrics_names_a_trace_for_a_bucket(meter):
    plugin, app = served(Route("/", hello))
    async with plugin.lifespan(app):
        with trace.use_span(NonRecordingSpan(CONTEXT)):
            await call(app)
        await call(app)
        accept = [(b"accept", b"application/openmetrics-text; version=1.0.0")]
        text = (await call(app, "/metrics", headers=accept)).body.decode()
    found = [
        sample.exemplar.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    ]
    assert found == [{"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}"}]


async def test_what_is_asked_for_and_not_installed_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "asgi_mlperf.telemetry.opentelemetry")
    monkeypatch.delattr("asgi_mlperf.telemetry.opentelemetry")
    monkeypatch.setattr(builtins, "__import__", without)
    plugin, app = served(Route("/", hello))
    with pytest.raises(ConfigurationError, match=r"asgi-mlperf\[otel\]"):
        async with plugin.lifespan(app):
            pass
