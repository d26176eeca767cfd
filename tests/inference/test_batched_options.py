from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import numpy as np
import pytest
from starlette.applications import Starlette
from tests.support import until

from asgi_mlperf import BatchError, DeadlineExceeded, Plugin, Settings


def one_thread(**batching) -> Plugin:
    return Plugin(Settings(pool={"threads": 1}, batching=batching))


class Held:
    """Keeps the plugin's one thread busy inside a block, so that items gather."""

    def __init__(self, plugin: Plugin):
        self.plugin = plugin
        self.open = threading.Event()

    async def __aenter__(self):
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold():
            loop.call_soon_threadsafe(begun.set)
            assert self.open.wait(30)

        self.task = asyncio.create_task(self.plugin.run(hold))
        await begun.wait()

    async def __aexit__(self, *error):
        await anyio.lowlevel.checkpoint()
        self.open.set()
        await self.task


async def test_a_batch_is_of_one_key_and_keys_take_turns():
    plugin, batches = one_thread(), []

    @plugin.batched(max_size=2, key=len)
    def lengths(texts: list[str]) -> list[int]:
        batches.append(texts)
        return [len(text) for text in texts]

    async with plugin.lifespan(Starlette()):
        async with Held(plugin):
            calls = [asyncio.create_task(lengths(text)) for text in ("a", "b", "c", "dd", "ee", "f")]
        assert await asyncio.gather(*calls) == [1, 1, 1, 2, 2, 1]
    assert batches == [["a", "b"], ["dd", "ee"], ["c", "f"]]


async def test_a_batch_keeps_within_its_padded_cost():
    plugin, batches = one_thread(), []

    @plugin.batched(cost=len, max_cost=8)
    def lengths(texts: list[str]) -> list[int]:
        batches.append(texts)
        return [len(text) for text in texts]

    async with plugin.lifespan(Starlette()):
        async with Held(plugin):
            calls = [asyncio.create_task(lengths(text)) for text in ("aa", "bbb", "c", "dddd", "eeee")]
        assert await asyncio.gather(*calls) == [2, 3, 1, 4, 4]
        with pytest.raises(BatchError, match=r"an item of .*lengths costs 9, and a whole batch may cost 8"):
            await lengths("123456789")
    assert batches == [["aa", "bbb"], ["c", "dddd"], ["eeee"]]


@pytest.mark.parametrize(
    "option", [{"key": lambda item: 1 / item}, {"cost": lambda item: 1 / item, "max_cost": 9}]
)
async def test_an_error_of_the_key_or_the_cost_is_its_callers_alone(option):
    plugin = one_thread()
    echo = plugin.batched(**option)(lambda items: items)
    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*(echo(item) for item in (1, 0, 2)), return_exceptions=True)
    assert results[0::2] == [1, 2]
    assert isinstance(results[1], ZeroDivisionError)


async def test_a_key_that_cannot_be_hashed_is_its_callers_error():
    plugin = one_thread()
    echo = plugin.batched(key=lambda item: item)(lambda items: items)
    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(echo([1]), echo("a"), return_exceptions=True)
    assert isinstance(results[0], TypeError)
    assert results[1] == "a"


async def test_items_are_collated_and_results_split():
    plugin, shapes = one_thread(), []

    @plugin.batched(collate=np.stack, split=lambda output: output["doubled"])
    def double(rows):
        shapes.append(rows.shape)
        return {"doubled": rows * 2}

    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*(double(np.full(3, n)) for n in range(4)))
    assert [result.tolist() for result in results] == [[0] * 3, [2] * 3, [4] * 3, [6] * 3]
    assert shapes == [(4, 3)]


@pytest.mark.parametrize("which", ["collate", "split"])
async def test_an_error_while_collating_or_splitting_reaches_every_caller(which):
    def fails(_):
        raise ZeroDivisionError

    plugin = one_thread()
    option: dict[str, Any] = {which: fails}
    echo = plugin.batched(**option)(lambda items: items)
    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(echo(1), echo(2), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2


async def test_collating_and_splitting_work_around_coroutine_functions():
    plugin = one_thread()

    @plugin.batched(collate=tuple, split=list)
    async def double(items: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(item * 2 for item in items)

    async with plugin.lifespan(Starlette()):
        assert list(await asyncio.gather(double(1), double(2))) == [2, 4]


async def test_one_bad_item_is_found_by_halves_and_hurts_itself_alone():
    plugin, batches = one_thread(), []

    @plugin.batched(retry="bisect", executor="thread")
    def invert(items: list[int]) -> list[float]:
        batches.append(items)
        return [1 / item for item in items]

    async with plugin.lifespan(Starlette()):
        items = [1, 2, 0, 4, 5, 8, 10]
        results = await asyncio.gather(*map(invert, items), return_exceptions=True)
    assert [type(result) for result in results].count(ZeroDivisionError) == 1
    assert results[:2] + results[3:] == [1 / item for item in items if item]
    assert not getattr(results[2], "__notes__", [])
    assert batches[0] == items
    assert [0] in batches
    assert len(batches) <= 7


@pytest.mark.parametrize("executor", ["inline", "thread"])
async def test_what_always_fails_is_tried_by_halves_and_no_more(executor):
    plugin, batches = one_thread(), []

    @plugin.batched(retry="bisect", executor=executor)
    def fail(items: list[int]) -> list[int]:
        batches.append(items)
        raise ValueError(str(items))

    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*map(fail, range(8)), return_exceptions=True)
    assert [str(result) for result in results] == [f"[{n}]" for n in range(8)]
    assert len(batches) == 15


async def test_cancelled_items_are_not_tried_again():
    plugin, batches, seen = one_thread(), [], threading.Event()
    going_on = threading.Event()

    @plugin.batched(retry="bisect", executor="thread")
    def fail(items: list[int]) -> list[int]:
        batches.append(items)
        seen.set()
        assert going_on.wait(30)
        raise ValueError

    async with plugin.lifespan(Starlette()):
        calls = [asyncio.create_task(fail(item)) for item in range(4)]
        await anyio.to_thread.run_sync(seen.wait, 30)
        for call in calls[:2]:
            call.cancel()
        going_on.set()
        await asyncio.gather(*calls, return_exceptions=True)
    assert batches == [[0, 1, 2, 3], [2, 3], [2], [3]]


async def test_a_wrong_number_of_results_is_not_tried_again():
    plugin, batches = one_thread(), []

    @plugin.batched(retry="bisect")
    def short(items: list[int]) -> list[int]:
        batches.append(items)
        return items[1:]

    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*map(short, range(4)), return_exceptions=True)
    assert [type(result) for result in results] == [BatchError] * 4
    assert len(batches) == 1


async def test_each_caller_is_told_which_batch_its_error_is_of():
    plugin = one_thread()

    @plugin.batched
    def fail(items: list[int]) -> list[int]:
        raise ValueError("bad")

    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*map(fail, range(2)), return_exceptions=True)
    notes = [result.__notes__ for result in results]
    assert [len(note) for note in notes] == [1, 1]
    assert notes[0][0].endswith("fail raised this for a batch of 2 items; this caller's is number 1")
    assert notes[1][0].endswith("number 2")


async def test_inline_batches_run_on_the_loops_thread_and_see_no_loop():
    plugin, seen = one_thread(), []

    @plugin.batched(executor="inline")
    def look(items: list[int]) -> list[int]:
        seen.append(threading.get_ident())
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return asyncio.run(later(items))

    async def later(items):
        return items

    async with plugin.lifespan(Starlette()):
        assert await asyncio.gather(*map(look, range(3))) == [0, 1, 2]
        asyncio.get_running_loop()
    assert seen == [threading.get_ident()]


async def test_inline_functions_hold_the_loop_once_in_a_turn():
    plugin, order = one_thread(), []

    def counting(name):
        def count(items):
            order.append(name)
            return items

        return plugin.batched(executor="inline", max_size=1)(count)

    async def turns():
        while len(order) < 7:
            order.append("turn")
            await asyncio.sleep(0)

    one, two = counting("one"), counting("two")
    async with plugin.lifespan(Starlette()):
        await asyncio.gather(one(1), two(2), one(3), turns())
    batches = "".join("t" if name == "turn" else "b" for name in order)
    assert "bb" not in batches
    assert batches.count("b") == 3


async def test_a_quick_function_is_taken_inline_after_some_calls_on_threads():
    plugin, threads = Plugin(Settings(batching={"inline_budget_ms": 500})), []

    @plugin.batched
    def echo(items: list[int]) -> list[int]:
        threads.append(threading.get_ident())
        return items

    async with plugin.lifespan(Starlette()):
        for item in range(30):
            assert await echo(item) == item
    assert threading.get_ident() not in threads[:5]
    assert threads[-1] == threading.get_ident()


@pytest.mark.parametrize("executor", ["inline", "thread"])
async def test_an_error_inline_is_as_one_on_a_thread(executor):
    plugin = one_thread()

    @plugin.batched(executor=executor)
    def fail(items: list[int]) -> list[int]:
        raise StopIteration("bad")

    async with plugin.lifespan(Starlette()):
        with pytest.raises(RuntimeError, match="fail raised StopIteration"):
            await fail(1)
        assert await plugin.run(abs, -1) == 1


async def test_inline_batches_wait_for_a_slot_like_others():
    plugin, batches = one_thread(), []

    @plugin.batched(executor="inline")
    def echo(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    async with plugin.lifespan(Starlette()):
        async with Held(plugin):
            calls = [asyncio.create_task(echo(item)) for item in range(3)]
            await anyio.lowlevel.checkpoint()
            assert batches == []
            with pytest.raises(DeadlineExceeded):
                await echo(4, timeout=0.001)
        assert await asyncio.gather(*calls) == [0, 1, 2]
    assert batches == [[0, 1, 2]]


async def test_what_waits_is_computed_before_the_end_of_the_drain():
    plugin = Plugin(Settings(pool={"threads": 1}, health={"drain_ms": 30_000}))
    echo = plugin.batched(executor="inline", max_size=1)(lambda items: items)
    async with plugin.lifespan(Starlette()):
        calls = [asyncio.create_task(echo(item)) for item in range(20)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*calls) == list(range(20))


@pytest.mark.parametrize("timeout", [0.001, 0.03])
async def test_a_short_and_a_long_wait_end_at_their_deadline(timeout):
    plugin = one_thread()
    echo = plugin.batched(lambda items: items)
    async with plugin.lifespan(Starlette()), Held(plugin):
        with pytest.raises(DeadlineExceeded):
            await echo(1, timeout=timeout)


async def test_an_idle_function_leaves_no_timer():
    plugin = Plugin(Settings(metrics={"enabled": False}))
    echo = plugin.batched(executor="inline")(lambda items: items)
    async with plugin.lifespan(Starlette()):
        await asyncio.gather(*map(echo, range(100)))
        patience = plugin._engine().pool().patience
        assert not patience._short  # nothing is kept of a wait that is over
        await until(lambda: patience._timer is None)
        assert not patience._short


async def test_what_is_never_tried_for_being_too_slow_is_tried_again_some_day():
    plugin = one_thread(executor="thread")
    slow = threading.Event()

    @plugin.batched
    def echo(items: list[int]) -> list[int]:
        slow.wait(0.2)
        return items

    async with plugin.lifespan(Starlette()):
        await echo(0, timeout=10)
        slow.set()
        refused = 0
        while True:
            try:
                assert await echo(1, timeout=0.05) == 1
                break
            except DeadlineExceeded:
                refused += 1
    assert 0 < refused < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "process"}, "executor is auto, inline or thread, not 'process'"),
        ({"retry": "once"}, "retry is \"bisect\" or None, not 'once'"),
        ({"cost": len}, "give both or neither"),
        ({"max_cost": 5}, "give both or neither"),
        ({"cost": len, "max_cost": 0}, "above 0, not 0"),
    ],
)
def test_a_senseless_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        Plugin().batched(**options)


async def a_coroutine_function(items):
    return items


def a_generator_function(items):
    yield items


@pytest.mark.parametrize(
    ("func", "options"),
    [
        (a_coroutine_function, {"executor": "thread"}),
        (a_generator_function, {"executor": "inline"}),
        (a_generator_function, {"retry": "bisect"}),
    ],
)
def test_an_option_that_the_function_cannot_have_is_an_error(func, options):
    with pytest.raises(ValueError, match=r"leave .* out"):
        Plugin().batched(**options)(func)


async def test_switched_off_it_is_a_batch_of_one_with_the_same_options():
    plugin = Plugin(Settings(enabled=False))

    @plugin.batched(collate=np.stack, split=list, key=len, cost=len, max_cost=9, retry="bisect")
    def total(rows):
        return rows.sum(axis=1)

    async with plugin.lifespan(Starlette()):
        assert await total(np.ones(3)) == 3
