"""What a whole plugin makes of the host: every kind of thread, metrics, warnings, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager

import anyio.to_thread
import pytest
import torch
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.host.asking import ask
from tests.host.waiting import Waiting

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.host.threads import NativeThreadCaps

CPUS = len(os.sched_getaffinity(0))

pytestmark = pytest.mark.usefixtures("collector_as_found")


def app_with(plugin, *routes):
    app = Starlette(routes=list(routes))
    plugin.install(app)
    return app


async def test_every_kind_of_thread_is_capped():
    plugin = Plugin(Settings(workers=CPUS))
    async with plugin.lifespan(Starlette()):
        counts = {
            "loop": torch.get_num_threads(),
            "run": await plugin.run(torch.get_num_threads),
            "def": await anyio.to_thread.run_sync(torch.get_num_threads),
            "to_thread": await asyncio.to_thread(torch.get_num_threads),
        }
    assert set(counts.values()) == {1}


async def test_a_call_alone_has_the_whole_budget_and_calls_at_once_share_it():
    plugin, torch_has = Plugin(Settings(workers=1, threads={"self_check": False})), torch.get_num_threads()

    def nested():
        return torch.get_num_threads()

    async with plugin.lifespan(Starlette()):
        budget = min(CPUS, torch_has)
        assert await plugin.run(nested) == budget
        assert await asyncio.to_thread(nested) == budget
        release, begun = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold():
            loop.call_soon_threadsafe(begun.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

        holding = asyncio.create_task(asyncio.to_thread(hold))
        await begun.wait()
        assert await plugin.run(nested) == max(1, budget // 2)
        release.set()
        await holding


@pytest.mark.parametrize("native", [1, 2])
async def test_an_explicit_width_wins(native):
    plugin = Plugin(Settings(threads={"native": native}))
    async with plugin.lifespan(Starlette()):
        assert await plugin.run(torch.get_num_threads) == min(native, CPUS)


async def test_a_handlers_own_count_is_kept_and_reported(caplog):
    def handler(_):
        torch.set_num_threads(2)
        return PlainTextResponse("ok")

    def look(_):
        return PlainTextResponse(str(torch.get_num_threads()))

    plugin, before = Plugin(Settings(threads={"cpus": 1})), torch.get_num_threads()
    app = app_with(plugin, Route("/set", handler), Route("/look", look))
    async with app.router.lifespan_context(app):
        await ask(app, "/set")
        assert await ask(app, "/look") == "2"
        assert await plugin.run(torch.get_num_threads) == 2
    assert "torch.set_num_threads" in caplog.text
    torch.set_num_threads(before)


async def test_the_width_is_a_metric_when_the_check_has_ended():
    app = app_with(Plugin(Settings(workers=CPUS)))
    async with app.router.lifespan_context(app):
        for _ in range(1000):
            body = await ask(app, "/metrics")
            if 'asgi_mlperf_native_threads{library="torch"} 1.0' in body:
                return
            await asyncio.to_thread(lambda: None)
    pytest.fail(body)


async def test_unknown_workers_are_a_warning_that_says_what_to_set(monkeypatch, caplog):
    monkeypatch.setattr("asgi_mlperf.host.supervisor._command", lambda process: None)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    async with Plugin(Settings()).lifespan(Starlette()):
        pass
    assert "set ASGI_MLPERF_WORKERS" in caplog.text


async def test_a_thread_from_before_is_capped_at_its_next_step(caplog):
    before = torch.get_num_threads()
    with Waiting(torch.get_num_threads) as thread:
        assert thread.tell() == before
        async with Plugin(Settings(workers=1, threads={"cpus": 1})).lifespan(Starlette()):
            assert thread.tell() == 1
    assert "ran before the plugin" not in caplog.text
    assert torch.get_num_threads() == before


async def test_a_thread_without_calls_for_long_gives_its_native_threads_back_and_works_on(monkeypatch):
    rested, rest = threading.Event(), NativeThreadCaps.rest

    def tell(caps):
        rest(caps)
        rested.set()

    monkeypatch.setattr(NativeThreadCaps, "rest", tell)
    monkeypatch.setattr("asgi_mlperf.inference.executors._IDLE_S", 0)
    plugin = Plugin(Settings(workers=1, pool={"threads": 1}))
    async with plugin.lifespan(Starlette()):
        width = await plugin.run(torch.get_num_threads)
        rested.clear()
        await plugin.run(int)
        assert await asyncio.to_thread(rested.wait, 10)
        assert await plugin.run(torch.get_num_threads) == width


@pytest.mark.usefixtures("slots_of_its_own")
async def test_pinning_moves_every_thread_and_gives_the_loop_a_core_if_asked():
    plugin = Plugin(Settings(workers=1, threads={"pin": True, "loop_core": True}))
    async with plugin.lifespan(Starlette()):
        here = os.sched_getaffinity(0)
        there = await plugin.run(os.sched_getaffinity, 0)
        assert here | there == set(range(CPUS)) or here | there <= set(range(os.cpu_count() or 1))
        if CPUS > 1:
            assert here.isdisjoint(there)
        assert await asyncio.to_thread(os.sched_getaffinity, 0) == there


async def test_nothing_is_pinned_under_a_quota(monkeypatch, caplog):
    monkeypatch.setattr("asgi_mlperf.host.cpu.cpu_quota", lambda root: 0.5)
    before = os.sched_getaffinity(0)
    async with Plugin(Settings(workers=1, threads={"pin": True})).lifespan(Starlette()):
        assert os.sched_getaffinity(0) == before
    assert "nothing is pinned" in caplog.text


async def test_where_threads_cannot_be_pinned_one_line_says_so(monkeypatch, caplog):
    monkeypatch.delattr(os, "sched_setaffinity")
    async with Plugin(Settings(workers=1, threads={"pin": True})).lifespan(Starlette()):
        pass
    assert "needs Linux" in caplog.text


async def test_a_check_that_may_still_run_is_waited_for_off_the_event_loop(monkeypatch):
    waited = []

    @contextmanager
    def checking(*_):
        yield
        waited.append(threading.current_thread())

    monkeypatch.setattr("asgi_mlperf.runtime.threads.checking", checking)
    async with Plugin().lifespan(Starlette()):
        pass
    assert len(waited) == 1
    assert waited != [threading.current_thread()]
