from __future__ import annotations

import asyncio
import itertools
import threading
import weakref

import anyio
import numpy as np
import pytest
from starlette.applications import Starlette
from tests.support import call

from asgi_mlperf import BatchError, DeadlineExceeded, NotRunning, Overloaded, Plugin, Settings
from asgi_mlperf.inference import deadlines, gathering
from asgi_mlperf.inference.placement import FixedPlacement


class Model:
    """A batched function that notes its batches and can be held up."""

    def __init__(self, plugin: Plugin, *, max_size: int = 32):
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.open = threading.Event()
        self.open.set()

        def double(items: list[int]) -> list[int]:
            self.batches.append(items)
            self.started.set()
            assert self.open.wait(30)
            return [item * 2 for item in items]

        self.predict = plugin.batched(double, max_size=max_size)

    async def busy(self, items: int = 1) -> asyncio.Task[int]:
        """Occupy one thread with a batch of one that does not end yet."""
        self.open.clear()
        self.started.clear()
        task = asyncio.create_task(self.predict(-1))
        await anyio.to_thread.run_sync(self.started.wait, 30)
        return task


def one_thread(**pool) -> Plugin:
    return Plugin(Settings(pool={"threads": 1, **pool}))


async def test_what_waits_while_the_model_is_busy_becomes_one_batch():
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first = await model.busy()
        rest = [asyncio.create_task(model.predict(item)) for item in range(5)]
        await anyio.lowlevel.checkpoint()
        model.open.set()
        assert await asyncio.gather(first, *rest) == [-2, 0, 2, 4, 6, 8]
    assert model.batches == [[-1], [0, 1, 2, 3, 4]]


async def test_a_batch_holds_at_most_max_size_items():
    plugin = one_thread()
    model = Model(plugin, max_size=2)
    async with plugin.lifespan(Starlette()):
        first = await model.busy()
        rest = [asyncio.create_task(model.predict(item)) for item in range(5)]
        await anyio.lowlevel.checkpoint()
        model.open.set()
        await asyncio.gather(first, *rest)
    assert model.batches == [[-1], [0, 1], [2, 3], [4]]


async def test_an_idle_model_takes_a_single_item_at_once():
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        assert await model.predict(3) == 6
    assert model.batches == [[3]]


async def test_an_item_is_let_go_of_once_its_caller_has_the_result():
    plugin = one_thread()
    predict = plugin.batched(lambda arrays: [array.sum() for array in arrays])
    async with plugin.lifespan(Starlette()):
        for call in (predict, lambda array: plugin.run(np.sum, array)):
            array = np.ones(1_000)
            kept = weakref.ref(array)
            assert await call(array) == 1_000
            del array
            await anyio.wait_all_tasks_blocked()
            assert kept() is None


async def test_items_that_arrive_together_share_a_batch():
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        assert await asyncio.gather(*(model.predict(item) for item in range(4))) == [0, 2, 4, 6]
    assert model.batches == [[0, 1, 2, 3]]


async def test_every_caller_gets_its_own_result_under_many_sizes():
    plugin = Plugin(Settings(pool={"threads": 3}))
    model = Model(plugin, max_size=7)
    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*(model.predict(item) for item in range(500)))
    assert results == [item * 2 for item in range(500)]
    assert sorted(item for batch in model.batches for item in batch) == list(range(500))


async def test_a_returned_exception_is_that_items_alone():
    plugin = Plugin()

    @plugin.batched
    def predict(items: list[int]) -> list[int | Exception]:
        return [ValueError(f"bad {item}") if item == 1 else item for item in items]

    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*(predict(item) for item in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["0", "bad 1", "2"]


async def test_a_raised_exception_reaches_every_caller_of_the_batch_and_only_of_it():
    plugin = one_thread()

    @plugin.batched(max_size=8)
    def predict(items: list[int]) -> list[int]:
        if 1 in items:
            raise RuntimeError("model broke")
        return items

    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*(predict(item) for item in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["model broke"] * 3
        assert await predict(5) == 5


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1, 2], r"predict returned 2 results for 1 items"),
        ([], r"predict returned 0 results for 1 items"),
        (None, r"predict returned NoneType"),
        ("a", r"predict returned str"),
        ({"a": 1}, r"predict returned dict"),
        (iter([1]), r"predict returned list_iterator"),
    ],
)
async def test_anything_but_one_result_per_item_is_an_error_that_names_the_function(returned, message):
    plugin = Plugin()

    @plugin.batched
    def predict(items):
        return returned

    async with plugin.lifespan(Starlette()):
        with pytest.raises(BatchError, match=message):
            await predict(1)


async def test_arrays_are_results_too():
    plugin = Plugin()

    @plugin.batched
    def predict(items: list[list[float]]) -> np.ndarray:
        return np.array(items) * 2

    async with plugin.lifespan(Starlette()):
        assert (await predict([1.0, 2.0])).tolist() == [2.0, 4.0]


async def test_cancelled_items_are_not_computed():
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first = await model.busy()
        rest = [asyncio.create_task(model.predict(item)) for item in range(3)]
        await anyio.lowlevel.checkpoint()
        rest[1].cancel()
        await asyncio.wait([rest[1]])
        model.open.set()
        assert list(await asyncio.gather(first, rest[0], rest[2])) == [-2, 0, 4]
    assert model.batches == [[-1], [0, 2]]


async def test_expired_items_are_not_computed():
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first = await model.busy()
        with pytest.raises(DeadlineExceeded, match="double did not finish before its deadline"):
            await model.predict(1, timeout=0.001)
        model.open.set()
        assert await first == -2
        assert await model.predict(2) == 4
    assert model.batches == [[-1], [2]]


async def test_waiting_items_are_bounded():
    plugin = one_thread(max_queue=2)
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first = await model.busy()
        rest = [asyncio.create_task(model.predict(item)) for item in range(2)]
        await anyio.lowlevel.checkpoint()
        with pytest.raises(Overloaded):
            await model.predict(9)
        model.open.set()
        assert await asyncio.gather(first, *rest) == [-2, 0, 2]


async def test_two_functions_share_the_threads_and_neither_crowds_out_the_other():
    plugin = one_thread()
    one, two = Model(plugin, max_size=1), Model(plugin, max_size=1)
    async with plugin.lifespan(Starlette()):
        first = await one.busy()
        order: list[str] = []

        async def note(model: Model, name: str, item: int) -> None:
            await model.predict(item)
            order.append(name)

        async with anyio.create_task_group() as group:
            for item in range(3):
                group.start_soon(note, one, "one", item)
            for item in range(3):
                group.start_soon(note, two, "two", item)
            await anyio.lowlevel.checkpoint()
            one.open.set()
        await first
    assert order == ["one", "two"] * 3


async def test_coroutine_functions_are_batched_on_the_loop():
    plugin, sizes = Plugin(), []

    @plugin.batched(max_size=8)
    async def predict(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [await plugin.run(abs, item) for item in items]

    async with plugin.lifespan(Starlette()):
        assert await asyncio.gather(*(predict(-item) for item in range(4))) == [0, 1, 2, 3]
    assert sizes == [4]


async def test_shutdown_leaves_no_caller_waiting():
    plugin = Plugin(Settings(pool={"threads": 1}, health={"drain_ms": 1}))
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first = await model.busy()
        waiting = asyncio.create_task(model.predict(1))
        await anyio.lowlevel.checkpoint()
    results = await asyncio.gather(first, waiting, return_exceptions=True)
    model.open.set()
    assert [type(result) for result in results] == [Overloaded, Overloaded]
    with pytest.raises(NotRunning):
        await model.predict(1)


async def test_a_second_start_begins_afresh():
    plugin = one_thread()
    model = Model(plugin)
    for item in (1, 2):
        async with plugin.lifespan(Starlette()):
            assert await model.predict(item) == item * 2


def test_a_senseless_size_is_an_error():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Plugin().batched(max_size=0)


def test_the_default_size_comes_from_the_settings():
    plugin = Plugin(Settings(batching={"max_size": 5}))
    assert plugin.batched(list).max_size == 5


def test_a_batched_function_keeps_its_name_and_function():
    def predict(items):
        """Predict."""

    batched = Plugin().batched(predict)
    assert (batched.__name__, batched.__doc__, batched.__wrapped__) == ("predict", "Predict.", predict)


async def test_batch_sizes_are_measured():
    plugin = one_thread()
    app = Starlette()
    plugin.install(app)

    @plugin.batched
    def predict(items: list[int]) -> list[int]:
        return items

    async with plugin.lifespan(app):
        await asyncio.gather(*(predict(item) for item in range(3)))
        text = (await call(app, "/metrics")).body.decode()
    name = predict.__qualname__
    assert f'asgi_mlperf_batch_size_count{{function="{name}"}} 1.0' in text
    assert f'asgi_mlperf_batch_size_sum{{function="{name}"}} 3.0' in text


async def in_turns(predict, count: int) -> list[asyncio.Task[int]]:
    """Call for one item in each turn of the loop."""
    tasks = []
    for item in range(count):
        tasks.append(asyncio.create_task(predict(item)))
        await anyio.lowlevel.checkpoint()
    return tasks


async def test_items_that_arrive_turn_by_turn_share_a_batch(monkeypatch):
    now = deadlines.clock()  # stands still: turns may take long where others want the CPU
    monkeypatch.setattr("asgi_mlperf.inference.gathering.clock", lambda: now)
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        await asyncio.gather(*await in_turns(model.predict, 10))
    assert model.batches == [list(range(10))]


async def test_items_that_never_stop_arriving_do_not_hold_up_the_first(monkeypatch):
    times = itertools.count(deadlines.clock(), 0.001)
    monkeypatch.setattr("asgi_mlperf.inference.gathering.clock", lambda: next(times))
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        await asyncio.gather(*await in_turns(model.predict, 10))
    assert 1 < len(model.batches[0]) < 10


class OneAtATime(FixedPlacement):
    """Lets one batch run at a time, on a thread."""

    most_on_threads = 1


async def held(model: Model) -> tuple[asyncio.Task[int], asyncio.Task[int]]:
    """Return the call of a batch that runs, and that of one that could have a slot and waits for its end."""
    await model.predict(-1)
    (batcher,) = model.predict._batchers.values()
    batcher.placement = OneAtATime(inline=False)
    first, second = await model.busy(), asyncio.create_task(model.predict(1))
    with anyio.fail_after(30):
        while not batcher.gathering._held:
            await anyio.lowlevel.checkpoint()
    return first, second


@pytest.fixture
def held_long(monkeypatch):
    monkeypatch.setattr(gathering, "_HOLD_S", 60)


@pytest.mark.usefixtures("held_long")
async def test_a_batch_waits_for_another_where_no_more_may_run_at_once():
    plugin = Plugin(Settings(pool={"threads": 2}))
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first, second = await held(model)
        more = asyncio.create_task(model.predict(2))
        await anyio.lowlevel.checkpoint()
        assert len(model.batches) == 2
        model.open.set()
        assert await asyncio.gather(*[first, second, more]) == [-2, 2, 4]
    assert model.batches[1:] == [[-1], [1, 2]]


async def test_a_batch_that_hangs_holds_up_the_next_one_for_a_moment_only():
    plugin = Plugin(Settings(pool={"threads": 2}))
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first, second = await held(model)  # both slots: the functions that run are at the model's gate
        with anyio.fail_after(30):
            while len(model.batches) < 3:
                await anyio.lowlevel.checkpoint()
        assert not first.done()
        model.open.set()
        assert await asyncio.gather(*[first, second]) == [-2, 2]


@pytest.mark.usefixtures("held_long")
async def test_a_batch_that_waits_for_another_is_refused_at_shutdown():
    plugin = Plugin(Settings(pool={"threads": 2}, health={"drain_ms": 0}))
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first, second = await held(model)
    with pytest.raises(Overloaded, match="shutting down"):
        await second
    with pytest.raises(Overloaded, match="shutting down"):
        await first
    model.open.set()


@pytest.mark.usefixtures("held_long")
async def test_a_batch_that_waits_for_another_is_drained():
    plugin = Plugin(Settings(pool={"threads": 2}))
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first, second = await held(model)
        model.open.set()
    assert await asyncio.gather(*[first, second]) == [-2, 2]


@pytest.mark.usefixtures("held_long")
async def test_a_crash_fails_a_batch_that_waits_for_another_and_the_next_runs():
    plugin = Plugin(Settings(pool={"threads": 2}))
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        first, second = await held(model)
        (batcher,) = model.predict._batchers.values()
        batcher.crashed(RuntimeError("bug"))
        with pytest.raises(BatchError, match="bug"):
            await second
        model.open.set()
        assert await first == -2
        batcher._begin_anew()
        assert await model.predict(3) == 6
        batcher.close()


async def test_a_batch_that_fills_the_loops_budget_gathers_no_more(monkeypatch):
    plugin = one_thread()
    model = Model(plugin)
    async with plugin.lifespan(Starlette()):
        await model.predict(-1)
        (batcher,) = model.predict._batchers.values()
        monkeypatch.setattr(batcher.placement, "room", lambda _, wanted, **__: min(wanted, 4))
        tasks = await in_turns(model.predict, 10)
        assert model.batches[1] == [0, 1, 2, 3]
        await asyncio.gather(*tasks)
