"""The wing in a running plugin, on real event loops."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import tracemalloc
import weakref
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.garbage.conftest import NEVER, cycles
from tests.support import call

from asgi_mlperf import Plugin, Settings


def state() -> dict[str, Any]:
    return {
        "thresholds": gc.get_threshold(),
        "enabled": gc.isenabled(),
        "callbacks": list(gc.callbacks),
        "frozen": gc.get_freeze_count(),
        "threads": [thread for thread in threading.enumerate() if thread.name == "asgi-mlperf-gc"],
    }


def installed(endpoint: Any, **settings: Any) -> tuple[Plugin, Starlette]:
    plugin, app = Plugin(Settings(**settings)), Starlette(routes=[Route("/", endpoint)])
    plugin.install(app)
    return plugin, app


async def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def steps(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_while_serving_the_heap_is_frozen_and_full_collections_are_off():
    found = state()
    plugin, app = installed(hello)
    async with plugin.lifespan(app):
        assert gc.get_threshold()[2] == NEVER
        assert gc.get_freeze_count() > 10_000
        assert len(state()["threads"]) == 1
    assert state() == found


@pytest.mark.parametrize("mode", ["scheduled", "freeze", "off"])
async def test_every_mode_leaves_everything_as_found(mode):
    found = state()
    plugin, app = installed(hello, gc={"mode": mode})
    for _ in range(2):
        async with plugin.lifespan(app):
            await call(app)
        assert state() == found


async def test_mode_freeze_leaves_the_thresholds_alone():
    found = gc.get_threshold()
    plugin, app = installed(hello, gc={"mode": "freeze"})
    async with plugin.lifespan(app):
        assert gc.get_threshold() == found
        assert gc.get_freeze_count() > 10_000


async def test_mode_off_touches_nothing_but_watches():
    found = state()
    plugin, app = installed(hello, gc={"mode": "off"})
    async with plugin.lifespan(app):
        assert {**state(), "callbacks": []} == {**found, "callbacks": []}


async def test_a_disabled_collector_stays_disabled_and_requests_still_collect():
    gc.disable()
    try:
        found = state()

        async def leaky(request: Any) -> PlainTextResponse:
            cycles(5_000)
            return PlainTextResponse("leaked")

        plugin, app = installed(leaky)
        async with plugin.lifespan(app):
            await call(app)
            await steps()
            assert gc.get_count()[0] < 2_000
            assert not gc.isenabled()
        assert state() == found
    finally:
        gc.enable()


async def test_garbage_of_a_request_is_gone_a_moment_after_it():
    gone: list[weakref.ref[Any]] = []

    class Cyclic:
        def __init__(self) -> None:
            self.me = self

    async def leaky(request: Any) -> PlainTextResponse:
        gone.append(weakref.ref(Cyclic()))
        cycles(5_000)
        assert gone[0]() is not None
        return PlainTextResponse("leaked")

    plugin, app = installed(leaky)
    async with plugin.lifespan(app):
        await call(app)
        await steps()
        assert gone[0]() is None


async def test_an_explicit_collection_in_a_handler_works_as_ever():
    async def collecting(request: Any) -> PlainTextResponse:
        cycles(100)
        return PlainTextResponse(str(gc.collect() >= 100))

    plugin, app = installed(collecting)
    async with plugin.lifespan(app):
        assert (await call(app)).body == b"True"


async def test_finalizers_that_raise_are_reported_as_ever(monkeypatch):
    reported: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda failure: reported.append(str(failure.exc_value)))

    class Rude:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            raise ValueError("rude")

    async def leaky(request: Any) -> PlainTextResponse:
        Rude()
        cycles(5_000)
        return PlainTextResponse("leaked")

    plugin, app = installed(leaky)
    async with plugin.lifespan(app):
        assert (await call(app)).status == 200
        await steps()
    assert reported == ["rude"]


async def test_finalizers_may_take_locks_that_handlers_take():
    lock, taken = threading.Lock(), []

    class Locking:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            with lock:
                taken.append(True)

    async def leaky(request: Any) -> PlainTextResponse:
        Locking()
        with lock:
            cycles(5_000)
        return PlainTextResponse("leaked")

    plugin, app = installed(leaky)
    async with plugin.lifespan(app):
        await call(app)
        await steps()
    assert taken == [True]


async def test_tracemalloc_and_the_debug_mode_of_asyncio_work_as_ever(caplog):
    async def leaky(request: Any) -> PlainTextResponse:
        cycles(5_000)
        return PlainTextResponse("leaked")

    plugin, app = installed(leaky)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    tracemalloc.start()
    try:
        with caplog.at_level(logging.ERROR):
            async with plugin.lifespan(app):
                assert (await call(app)).status == 200
                await steps()
                assert tracemalloc.take_snapshot().statistics("lineno")
    finally:
        tracemalloc.stop()
        loop.set_debug(False)
    assert caplog.text == ""


async def test_the_schedule_shows_in_the_metrics():
    plugin, app = installed(hello)
    async with plugin.lifespan(app):
        gc.collect()
        await asyncio.sleep(0)
        due = asyncio.get_running_loop().time() + 5
        text = ""
        while "asgi_mlperf_gc_freed_objects_total{" not in text and asyncio.get_running_loop().time() < due:
            text = (await call(app, "/metrics")).body.decode()
        frozen = float(text.split("\nasgi_mlperf_gc_frozen_objects ")[1].split()[0])
    assert frozen > 10_000
    for series in ("gc_share_ratio", "gc_deferred_seconds", 'gc_valve_openings_total{reason="memory"}'):
        assert f"\nasgi_mlperf_{series} " in text
