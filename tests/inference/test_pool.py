from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref

import anyio
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from tests.support import call

from asgi_mlperf import DeadlineExceeded, Overloaded, Plugin, Settings


def plugin_with(**pool) -> Plugin:
    return Plugin(Settings(pool=pool))


class Gate:
    """A model that runs until it is told to end, and knows how many of it run."""

    def __init__(self):
        self.opened = threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = self.calls = 0
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def __call__(self, value=0):
        with self.lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.loop.call_soon_threadsafe(self.started.put_nowait, value)
        assert self.opened.wait(30)
        with self.lock:
            self.running -= 1
        return value


async def test_no_more_than_the_threads_run_at_once():
    plugin = plugin_with(threads=2)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        async with anyio.create_task_group() as group:
            for value in range(10):
                group.start_soon(plugin.run, gate, value)
            await gate.started.get()
            await gate.started.get()
            gate.opened.set()
    assert (gate.most, gate.calls) == (2, 10)


async def test_a_slot_is_held_until_its_thread_is_done_whatever_became_of_the_caller():
    plugin = plugin_with(threads=1)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        first = asyncio.create_task(plugin.run(gate, 1))
        await gate.started.get()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(DeadlineExceeded):
            await plugin.run(gate, 2, timeout=0.01)
        assert (gate.running, gate.calls) == (1, 1)
        gate.opened.set()
        assert await plugin.run(gate, 3) == 3
    assert gate.most == 1


async def test_cancelled_and_expired_calls_that_waited_cost_no_compute():
    plugin = plugin_with(threads=1)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        running = asyncio.create_task(plugin.run(gate, 0))
        await gate.started.get()
        waiting = [asyncio.create_task(plugin.run(gate, value)) for value in range(1, 4)]
        await anyio.lowlevel.checkpoint()
        waiting[0].cancel()
        with pytest.raises(DeadlineExceeded):
            await plugin.run(gate, 9, timeout=0.001)
        gate.opened.set()
        results = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert [results[0], *results[2:]] == [0, 2, 3]
    assert gate.calls == 3


async def test_a_full_queue_refuses_with_503_and_retry_after():
    plugin = plugin_with(threads=1, max_queue=1)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        tasks = [asyncio.create_task(plugin.run(gate)) for _ in range(2)]
        await gate.started.get()
        with pytest.raises(Overloaded) as caught:
            await plugin.run(gate)
        gate.opened.set()
        await asyncio.gather(*tasks)
    assert caught.value.status_code == 503
    assert caught.value.headers == {"Retry-After": str(caught.value.retry_after_s)}


async def test_clients_are_told_to_come_back_at_times_that_are_spread_and_bounded():
    plugin = plugin_with(threads=1)
    async with plugin.lifespan(Starlette()):
        pool, gate = plugin._engine().pool(), Gate()
        task = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        idle = {pool.refusal("queue_full").retry_after_s for _ in range(200)}
        pool._admission.service_time.observe(3_600.0)
        hours = {pool.refusal("queue_full").retry_after_s for _ in range(200)}
        gate.opened.set()
        await task
    assert idle == {1}  # whole seconds, and below two
    assert len(hours) > 10
    assert min(hours) >= 60
    assert max(hours) <= 90


async def test_refusals_are_logged_in_one_line_a_second_with_their_number(caplog, monkeypatch):
    now = time.perf_counter()
    monkeypatch.setattr("asgi_mlperf.inference.gate.clock", lambda: now)
    plugin = plugin_with(threads=1, max_queue=0)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        task = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        for step in (0.0, 0.0, 0.0, 1.5, 0.0):
            now += step
            with pytest.raises(Overloaded):
                await plugin.run(gate)
        gate.opened.set()
        await task
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == [
        "refused 1 calls to default",
        "refused 3 calls to default",
    ]


async def test_what_is_given_up_is_counted_by_reason():
    plugin = plugin_with(threads=1)
    app = Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        gate = Gate()
        running = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        waiting = asyncio.create_task(plugin.run(gate))
        await anyio.lowlevel.checkpoint()
        waiting.cancel()
        await asyncio.wait([waiting])
        with pytest.raises(DeadlineExceeded):
            await plugin.run(gate, timeout=0.001)
        gate.opened.set()
        await running
        text = (await call(app, "/metrics")).body.decode()
    for reason in ("cancelled", "deadline"):
        assert f'asgi_mlperf_inference_abandoned_total{{pool="default",reason="{reason}"}} 1.0' in text


async def test_a_call_that_cannot_make_its_deadline_is_refused_at_the_door():
    plugin = plugin_with(threads=1)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        plugin._engine().pool().service("Gate").observe(10.0)
        task = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        with pytest.raises(Overloaded, match="too long for the deadline"):
            await plugin.run(gate, timeout=5.0)
        gate.opened.set()
        await task


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("full", retry_after_s=7), 503), (DeadlineExceeded("late"), 504)]
)
def test_both_errors_left_alone_become_responses(error, status):
    async def fail(request):
        raise error

    answer = TestClient(Starlette(routes=[Route("/", fail)])).get("/")
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == ("7" if status == 503 else None)


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_senseless_timeout_is_an_error(timeout):
    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        with pytest.raises(ValueError, match="timeout is seconds from now"):
            await plugin.run(abs, 1, timeout=timeout)


async def test_a_passed_deadline_starts_nothing():
    plugin, calls = Plugin(), []
    async with plugin.lifespan(Starlette()):
        with pytest.raises(DeadlineExceeded, match="append"):
            await plugin.run(calls.append, 1, timeout=0)
    assert calls == []


async def test_the_default_deadline_holds_while_serving_but_not_during_the_start():
    plugin = plugin_with(timeout_ms=1)
    started, gate = [], threading.Event()

    @plugin.warmup
    async def load():
        started.append(await plugin.run(threading.Event().wait, 0.02))

    async with plugin.lifespan(Starlette()):
        with pytest.raises(DeadlineExceeded):
            await plugin.run(gate.wait, 30)
        gate.set()
        assert await plugin.run(abs, -1, timeout=math.inf) == 1
    assert started == [False]


async def test_a_coroutine_function_passed_by_mistake_is_a_clear_error():
    async def coroutine():
        pytest.fail("never awaited")

    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        with pytest.raises(TypeError, match="coroutine is a coroutine function: await it directly"):
            await plugin.run(coroutine)  # type: ignore[unused-coroutine] # the mistake


async def test_stop_iteration_and_base_exceptions_reach_the_caller():
    class Special(BaseException):
        pass

    def raise_(error):
        raise error

    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await plugin.run(raise_, StopIteration())
        with pytest.raises(Special):
            await plugin.run(raise_, Special())
        assert await plugin.run(abs, -1) == 1


async def test_functions_may_call_back_into_the_event_loop():
    async def on_the_loop() -> bool:
        return threading.current_thread() is threading.main_thread()

    def call_back() -> bool:
        return anyio.from_thread.run(on_the_loop)

    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        assert await plugin.run(call_back) is True


async def test_the_apps_default_pool_is_neither_used_nor_resized():
    plugin = plugin_with(threads=1)
    async with plugin.lifespan(Starlette()):
        limiter = anyio.to_thread.current_default_thread_limiter()
        gate = Gate()
        task = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        assert (limiter.total_tokens, limiter.borrowed_tokens) == (40, 0)
        gate.opened.set()
        await task


async def test_shutdown_waits_for_running_calls():
    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        task = asyncio.create_task(plugin.run(gate, 5))
        await gate.started.get()
        asyncio.get_running_loop().call_soon(gate.opened.set)
    assert await task == 5


async def test_shutdown_lets_what_waits_run_too():
    plugin = plugin_with(threads=1)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        tasks = [asyncio.create_task(plugin.run(gate, value)) for value in range(3)]
        await gate.started.get()
        asyncio.get_running_loop().call_soon(gate.opened.set)
    assert [await task for task in tasks] == [0, 1, 2]


async def test_shutdown_gives_up_on_calls_that_do_not_end(caplog):
    plugin = Plugin(Settings(pool={"threads": 1}, health={"drain_ms": 1}))
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        running = asyncio.create_task(plugin.run(gate))
        waiting = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
    for task in (running, waiting):
        with pytest.raises(Overloaded, match="shutting down"):
            await task
    gate.opened.set()
    assert gate.calls == 1
    assert any(
        "1 calls to default still ran after the drain time" in record.getMessage()
        for record in caplog.records
    )


async def test_large_results_are_not_kept():
    class Large:
        pass

    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        large = weakref.ref(await plugin.run(Large))
        with anyio.fail_after(10):
            while large() is not None:
                await anyio.lowlevel.checkpoint()


async def test_waiting_and_running_are_measured():
    plugin = plugin_with(threads=1, max_queue=1)
    async with plugin.lifespan(Starlette()):
        app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("ok"))])
        plugin.install(app)
        gate = Gate()
        tasks = [asyncio.create_task(plugin.run(gate)) for _ in range(2)]
        await gate.started.get()
        with pytest.raises(Overloaded):
            await plugin.run(gate)
        during = (await call(app, "/metrics")).body.decode()
        gate.opened.set()
        await asyncio.gather(*tasks)
        after = (await call(app, "/metrics")).body.decode()
    assert 'asgi_mlperf_inference_queue_length{pool="default"} 1.0' in during
    assert 'asgi_mlperf_refused_total{pool="default",reason="queue_full"} 1.0' in during
    assert 'asgi_mlperf_inference_queue_length{pool="default"} 0.0' in after
    assert 'asgi_mlperf_inference_queue_seconds_count{pool="default"} 2.0' in after
    assert 'asgi_mlperf_inference_run_seconds_count{pool="default"} 2.0' in after
