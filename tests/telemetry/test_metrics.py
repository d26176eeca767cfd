from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.support import call

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.telemetry.loop_lag import INTERVAL_S, LoopLag


async def hello(request):
    return PlainTextResponse("hello")


def installed(**settings) -> tuple[Plugin, Starlette]:
    plugin = Plugin(Settings(**settings))
    app = Starlette(routes=[Route("/", hello), Route("/quiet", hello)])
    plugin.install(app)
    return plugin, app


async def scraped(app, accept: str = "") -> str:
    headers = [(b"accept", accept.encode())] if accept else []
    return (await call(app, "/metrics", headers=headers)).body.decode()


async def test_the_scrape_is_well_formed_in_both_formats():
    plugin, app = installed()
    async with plugin.lifespan(app):
        await call(app)
        text = await scraped(app)
        openmetrics = await scraped(app, "application/openmetrics-text; version=1.0.0")
    for families in (parse_text(text), parse_openmetrics(openmetrics)):
        names = {family.name for family in families}
        assert {
            "http_server_request_duration_seconds",
            "http_server_active_requests",
            "asgi_mlperf_gc_pause_seconds",
            "asgi_mlperf_event_loop_lag_seconds",
            "asgi_mlperf_inference_queue_seconds",
            "asgi_mlperf_inference_run_seconds",
            "asgi_mlperf_inference_queue_length",
            "asgi_mlperf_batch_size",
            "asgi_mlperf_native_threads",
        } <= names


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "text/plain;q=x", ";;,"])
async def test_a_senseless_accept_header_gets_text(accept):
    plugin, app = installed()
    async with plugin.lifespan(app):
        assert "http_server_active_requests" in await scraped(app, accept)


async def test_the_default_registry_is_served_along_unless_switched_off():
    own = prometheus_client.Counter("own_things", "The user's own.")
    try:
        for served in (True, False):
            plugin, app = installed(metrics={"default_registry": served})
            async with plugin.lifespan(app):
                assert ("own_things_total" in await scraped(app)) == served
    finally:
        prometheus_client.REGISTRY.unregister(own)


async def test_two_plugins_do_not_share_their_series():
    one, two = installed(), installed()
    async with one[0].lifespan(one[1]), two[0].lifespan(two[1]):
        await call(one[1])
        assert 'http_route="/"' in await scraped(one[1])
        assert 'http_route="/"' not in await scraped(two[1])


async def test_excluded_templates_are_not_measured():
    plugin, app = installed(metrics={"exclude": ["/quiet"]})
    async with plugin.lifespan(app):
        await call(app, "/quiet")
        await call(app, "/")
        text = await scraped(app)
    assert 'http_route="/"' in text
    assert "/quiet" not in text


async def test_buckets_come_from_the_settings():
    plugin, app = installed(metrics={"buckets": [0.5, 30]})
    async with plugin.lifespan(app):
        await call(app)
        text = await scraped(app)
    bounds = [
        line.split('le="')[1].split('"')[0]
        for line in text.splitlines()
        if line.startswith("http_server_request_duration_seconds_bucket")
    ]
    assert bounds == ["0.5", "30.0", "+Inf"]


async def test_gc_pauses_are_told_apart_by_where_they_fell():
    async def collecting(request):
        gc.collect()
        return PlainTextResponse("collected")

    plugin = Plugin()
    app = Starlette(routes=[Route("/", collecting)])
    plugin.install(app)
    async with plugin.lifespan(app):
        before = await scraped(app)
        assert 'where="request"' not in before
        await call(app)
        gc.collect()
        ticked = asyncio.get_running_loop().time() + 3 * INTERVAL_S
        while asyncio.get_running_loop().time() < ticked and 'where="request"' not in await scraped(app):
            await anyio.lowlevel.checkpoint()
        text = await scraped(app)
    assert 'asgi_mlperf_gc_pause_seconds_count{generation="2",where="request"} 1.0' in text
    assert 'asgi_mlperf_gc_pause_seconds_count{generation="2",where="idle"}' in text


async def test_a_scrape_answers_while_every_inference_thread_is_busy():
    import threading

    plugin = Plugin(Settings(pool={"threads": 1}))
    app = Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        gate = threading.Event()
        tasks = [asyncio.create_task(plugin.run(gate.wait, 30)) for _ in range(50)]
        await anyio.lowlevel.checkpoint()
        assert "asgi_mlperf_inference_queue_length" in await scraped(app)
        assert (await call(app, "/livez")).status == 200
        gate.set()
        await asyncio.gather(*tasks)


class FakeLoop:
    """A loop whose time is moved by hand."""

    def __init__(self):
        self.now = 0.0
        self.timers: list[tuple[float, Any]] = []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        self.timers.append((when, callback))
        return self

    def cancel(self):
        self.timers.clear()

    def turn_at(self, now):
        self.now = now
        ((_, callback),) = self.timers
        self.timers.clear()
        callback()


class Values(list[float]):
    observe = list.append


@pytest.mark.parametrize(
    ("late", "gc_seconds", "by_gc", "by_other"),
    [(0.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.5), (0.5, 0.2, 0.2, 0.3), (0.1, 0.4, 0.1, 0.0)],
)
def test_lag_is_split_into_the_garbage_collectors_and_the_rest(late, gc_seconds, by_gc, by_other):
    loop, gc_values, other_values, spent, ticks = FakeLoop(), Values(), Values(), [0.0], []
    lag = LoopLag(
        loop,
        gc_seconds=lambda: spent[0],
        by_gc=gc_values,
        by_other=other_values,
        on_tick=lambda: ticks.append(loop.now),
    )
    with lag.measuring():
        spent[0] = gc_seconds
        loop.turn_at(INTERVAL_S + late)
        assert len(loop.timers) == 1
    assert gc_values == pytest.approx([by_gc])
    assert other_values == pytest.approx([by_other])
    assert loop.timers == []
    assert len(ticks) == 2
