from __future__ import annotations

import asyncio
import random
import threading

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.inference.test_pool import Gate
from tests.support import call

from asgi_mlperf import DeadlineExceeded, Overloaded, Plugin, Settings
from asgi_mlperf.inference.limits import Gradient


async def test_named_pools_have_their_own_threads_queue_and_label():
    plugin = Plugin(Settings(pool={"threads": 1}))
    embedder = plugin.pool("embedder", threads=2, max_queue=0)
    app = Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        gate = Gate()
        tasks = [asyncio.create_task(embedder.run(gate)) for _ in range(2)]
        for _ in tasks:
            await gate.started.get()
        with pytest.raises(Overloaded):
            await embedder.run(gate)
        assert await plugin.run(abs, -1) == 1
        text = (await call(app, "/metrics")).body.decode()
        gate.opened.set()
        await asyncio.gather(*tasks)
    assert 'asgi_mlperf_inference_running{pool="embedder"} 2.0' in text
    assert 'asgi_mlperf_refused_total{pool="embedder",reason="queue_full"} 1.0' in text


async def test_a_batched_function_can_run_in_a_named_pool():
    plugin = Plugin(Settings(pool={"threads": 1}))
    embedder = plugin.pool("embedder")
    predict = plugin.batched(lambda items: items, pool=embedder)
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        busy = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        assert await predict(3) == 3
        gate.opened.set()
        await busy


def test_a_pool_is_declared_once_and_with_sense():
    plugin = Plugin()
    plugin.pool("embedder")
    with pytest.raises(ValueError, match="there is a pool 'embedder' already"):
        plugin.pool("embedder")
    with pytest.raises(ValueError, match="threads"):
        plugin.pool("other", threads=0)


async def test_urgent_calls_go_first_and_the_lowest_are_served_too():
    plugin = Plugin(Settings(pool={"threads": 1}))
    order: list[str] = []
    async with plugin.lifespan(Starlette()):
        gate = Gate()
        first = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        tasks = [
            asyncio.create_task(plugin.run(order.append, priority, priority=priority))
            for priority in ["low"] * 30 + ["normal"] * 30 + ["high"] * 30
        ]
        await anyio.lowlevel.checkpoint()
        gate.opened.set()
        await asyncio.gather(first, *tasks)
    assert order[0] == "high"
    assert order[:25].count("high") > order[:25].count("normal") > order[:25].count("low") >= 1


async def test_an_endpoint_gives_its_calls_a_priority():
    plugin = Plugin(Settings(pool={"threads": 1}))
    order: list[str] = []

    @plugin.priority("low")
    async def background(request):
        await plugin.run(order.append, "background")
        return PlainTextResponse()

    async def plain(request):
        await plugin.run(order.append, "plain")
        return PlainTextResponse()

    app = Starlette(routes=[Route("/background", background), Route("/plain", plain)])
    plugin.install(app)
    async with plugin.lifespan(app):
        gate = Gate()
        first = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        pool = plugin._engine().pool()
        requests = []
        for path in ("/background", "/plain"):
            requests.append(asyncio.create_task(call(app, path)))
            while len(pool._admission) < len(requests):
                await anyio.lowlevel.checkpoint()
        gate.opened.set()
        await asyncio.gather(first, *requests)
    assert order == ["plain", "background"]


@pytest.mark.parametrize("use", ["run", "mark"])
async def test_a_senseless_priority_is_an_error(use):
    plugin = Plugin()
    async with plugin.lifespan(Starlette()):
        with pytest.raises(ValueError, match="one of high, normal, low"):
            plugin.priority("urgent") if use == "mark" else await plugin.run(abs, 1, priority="urgent")


async def test_a_call_to_ones_own_pool_from_inside_is_refused_and_not_a_deadlock():
    plugin = Plugin(Settings(pool={"threads": 1}))

    def outer():
        return anyio.from_thread.run(plugin.run, abs, -1)

    async with plugin.lifespan(Starlette()):
        with pytest.raises(RuntimeError, match="abs was sent to the pool 'default' from inside"):
            await plugin.run(outer)
        assert await plugin.run(abs, -1) == 1


async def test_a_pool_whose_threads_are_all_stuck_turns_readiness_off_and_says_where():
    plugin = Plugin(Settings(pool={"threads": 1, "stuck_ms": 1}))
    app = Starlette()
    plugin.install(app)
    async with plugin.lifespan(app):
        gate = Gate()
        task = asyncio.create_task(plugin.run(gate))
        await gate.started.get()
        with anyio.fail_after(10):
            while b"threading.py" not in (answer := await call(app, "/readyz")).body:
                await anyio.lowlevel.checkpoint()
        assert answer.status == 503
        assert b"default is stuck: Gate runs for" in answer.body
        assert b"in __call__" in answer.body
        assert b"work.py" not in answer.body
        gate.opened.set()
        await task
        assert (await call(app, "/readyz")).status == 200


async def test_loading_a_model_says_nothing_about_using_it():
    plugin = Plugin(Settings(pool={"threads": 1}))
    loaded = threading.Event()

    def load_or_use():
        loaded.wait(0.5)
        loaded.set()

    plugin.warmup(load_or_use)
    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(
            *(plugin.run(load_or_use, timeout=0.4) for _ in range(4)), return_exceptions=True
        )
    assert results == [None] * 4


async def test_a_remote_limit_lets_so_many_through_and_learns():
    plugin = Plugin()
    backend = plugin.limit("backend", initial=2, least=1, most=4)
    most = under_way = 0
    async with plugin.lifespan(Starlette()):

        async def use() -> None:
            nonlocal most, under_way
            async with backend(timeout=10):
                under_way += 1
                most = max(most, under_way)
                await anyio.lowlevel.checkpoint()
                under_way -= 1

        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(use)
        assert 2 <= most <= 4
        with pytest.raises(ZeroDivisionError):
            async with backend():
                raise ZeroDivisionError
        assert under_way == 0


async def test_a_remote_limit_gives_up_at_the_deadline_and_leaks_no_place():
    plugin = Plugin()
    backend = plugin.limit("backend", initial=1, least=1, most=1)
    async with plugin.lifespan(Starlette()):
        async with backend():
            with pytest.raises(DeadlineExceeded):
                async with backend(timeout=0.01):
                    pytest.fail("entered a full limit")
            cancelled = asyncio.create_task(backend().__aenter__())
            await anyio.lowlevel.checkpoint()
            cancelled.cancel()
            await asyncio.wait([cancelled])
        async with backend(timeout=1):
            pass


def test_the_gradient_grows_while_calls_take_as_long_as_ever_and_shrinks_when_they_take_longer():
    gradient = Gradient(initial=10, least=2, most=100)
    for _ in range(200):
        gradient.observe(0.1, gradient.limit)
    assert gradient.limit == 100
    for _ in range(60):
        gradient.observe(1.0, gradient.limit)
    assert gradient.limit < 60
    before = gradient.limit
    gradient.overloaded()
    assert gradient.limit < before
    for _ in range(500):
        gradient.overloaded()
    assert gradient.limit == 2


def test_an_idle_limit_does_not_grow():
    gradient = Gradient(initial=20, least=1, most=100)
    for _ in range(100):
        gradient.observe(0.1, 1)
    assert gradient.limit == 20


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("untraced")
async def test_chaos_leaves_every_counter_at_zero():
    chance = random.Random(1)
    plugin = Plugin(Settings(pool={"threads": 3, "max_queue": 50}, health={"drain_ms": 60_000}))
    side = plugin.pool("side", threads=2, max_queue=20)
    most = running = done = 0
    lock = threading.Lock()

    def model(kind: float) -> float:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        try:
            if kind < 0.1:
                raise ValueError(kind)
            return kind
        finally:
            with lock:
                running -= 1

    @plugin.batched(max_size=4)
    def batch(items: list[float]) -> list[float]:
        return [model(item) for item in items]

    async def one(kind: float, how: float) -> None:
        nonlocal done
        timeout = None if how < 0.5 else how / 100
        use = (plugin.run, side.run)[how * 10 % 2 < 1]
        try:
            with anyio.move_on_after(0 if how > 0.9 else None):
                result = await (
                    batch(kind, timeout=timeout) if how * 7 % 1 < 0.5 else use(model, kind, timeout=timeout)
                )
                assert result == kind
        except (Overloaded, DeadlineExceeded, ValueError):
            pass
        done += 1

    async with plugin.lifespan(Starlette()):
        for _ in range(500):
            tasks = [asyncio.create_task(one(chance.random(), chance.random())) for _ in range(100)]
            for task in chance.sample(tasks, 10):
                asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.wait(tasks)
        engine = plugin._engine()
        await engine.drain(30)
        for name in ("default", "side"):
            pool = engine.pool(name)
            assert (pool._admission.running, len(pool._admission), len(pool._running)) == (0, 0, 0)
        assert running == 0
    assert most <= 5
    assert done > 40_000
