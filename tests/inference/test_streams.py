from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette

from asgi_mlperf import BatchError, DeadlineExceeded, NotRunning, Overloaded, Plugin, Settings
from asgi_mlperf.inference.streams import StreamItem


def plugin_with(**settings) -> Plugin:
    return Plugin(Settings(pool={"threads": 1}, **settings))


def counting(plugin: Plugin, *, kind: str, batches: list[Any]):
    """Count from 1 to each item; ends each stream by itself."""

    def step(n: int, items: list[int]) -> list[int | StopIteration]:
        return [n if n <= item else StopIteration() for item in items]

    def count(items):
        batches.append(items)
        for n in range(1, max(items) + 1):
            yield step(n, items)

    async def count_on_loop(items):
        batches.append(items)
        for n in range(1, max(items) + 1):
            await asyncio.sleep(0)
            yield step(n, items)

    return plugin.batched({"plain": count, "async": count_on_loop}[kind])


async def listed(stream) -> list[Any]:
    return [chunk async for chunk in stream]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_each_caller_gets_the_chunks_of_its_own_item(kind):
    plugin, batches = plugin_with(), []
    count = counting(plugin, kind=kind, batches=batches)
    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*(listed(count(item)) for item in (3, 1, 2)))
    assert results == [[1, 2, 3], [1], [1, 2]]
    assert batches == [[3, 1, 2]]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_switched_off_a_stream_is_a_batch_of_one(kind):
    plugin, batches = Plugin(Settings(enabled=False)), []
    count = counting(plugin, kind=kind, batches=batches)
    async with plugin.lifespan(Starlette()):
        assert await listed(count(3)) == [1, 2, 3]


async def test_switched_off_an_exception_in_place_of_a_chunk_is_raised_or_ends_the_stream():
    plugin = Plugin(Settings(enabled=False))

    @plugin.batched
    def chunks(items):
        yield [1]
        yield [items[0]]

    async with plugin.lifespan(Starlette()):
        with pytest.raises(ValueError, match="bad"):
            await listed(chunks(ValueError("bad")))
        assert await listed(chunks(StopAsyncIteration())) == [1]


async def test_chunks_come_as_they_are_made():
    plugin, going_on = plugin_with(), threading.Event()

    @plugin.batched
    def two(items):
        yield items
        assert going_on.wait(30)
        yield items

    async with plugin.lifespan(Starlette()), aclosing(two("a")) as stream:
        assert await anext(stream) == "a"
        going_on.set()
        assert await anext(stream) == "a"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_an_error_amid_the_stream_reaches_every_caller_after_its_chunks():
    plugin = plugin_with()

    @plugin.batched
    def fails(items):
        yield items
        raise RuntimeError("model broke")

    async def taken(item) -> list[Any]:
        async with aclosing(fails(item)) as stream:
            chunks = [await anext(stream)]
            with pytest.raises(RuntimeError, match="model broke"):
                await anext(stream)
        return chunks

    async with plugin.lifespan(Starlette()):
        assert list(await asyncio.gather(taken(1), taken(2))) == [[1], [2]]


async def test_an_exception_in_place_of_a_chunk_is_that_items_alone():
    plugin = plugin_with()

    @plugin.batched
    def chunks(items):
        yield [ValueError("bad") if item == 1 else item for item in items]
        yield items

    async with plugin.lifespan(Starlette()):
        results = await asyncio.gather(*(listed(chunks(n)) for n in (0, 1)), return_exceptions=True)
    assert results[0] == [0, 0]
    assert str(results[1]) == "bad"


async def test_a_step_of_the_wrong_length_is_an_error_that_names_the_function():
    plugin = plugin_with()

    @plugin.batched
    def wrong(items):
        yield [*items, 1]

    async with plugin.lifespan(Starlette()):
        with pytest.raises(BatchError, match="wrong returned 2 results for 1 items"):
            await listed(wrong(1))


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_batch_ends_when_nobody_takes_its_chunks_any_more(kind):
    plugin, ended = plugin_with(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(items):
        try:
            while True:
                yield items
        finally:
            loop.call_soon_threadsafe(ended.set)

    async def endless_on_loop(items):
        try:
            while True:
                await asyncio.sleep(0)
                yield items
        finally:
            ended.set()

    stream_of = plugin.batched({"plain": endless, "async": endless_on_loop}[kind])
    async with plugin.lifespan(Starlette()):
        async with aclosing(stream_of(1)) as stream:
            assert await anext(stream) == 1
        await ended.wait()
        assert await plugin.run(abs, -1) == 1


async def test_the_deadline_is_that_of_the_first_chunk():
    plugin, going_on = plugin_with(), threading.Event()

    @plugin.batched
    def late(items):
        if items == ["late"]:
            assert going_on.wait(30)
        yield items
        assert going_on.wait(30)
        yield items

    async with plugin.lifespan(Starlette()):
        async with aclosing(late("begun", timeout=1)) as stream:
            assert await anext(stream) == "begun"
            await anyio.sleep(1.1)
            going_on.set()
            assert await listed(stream) == ["begun"]
        going_on.clear()
        with pytest.raises(DeadlineExceeded):
            await listed(late("late", timeout=0.05))
        going_on.set()


async def test_a_caller_whose_client_has_left_still_hears_of_its_deadline(monkeypatch):
    plugin, going_on = plugin_with(), threading.Event()
    made: list[StreamItem] = []
    make = StreamItem.__init__

    def recorded(item: StreamItem, *values: Any, **about: Any) -> None:
        made.append(item)
        make(item, *values, **about)

    monkeypatch.setattr(StreamItem, "__init__", recorded)

    @plugin.batched
    def held(items):
        assert going_on.wait(30)
        yield items

    async with plugin.lifespan(Starlette()):
        stream = held("item", timeout=0.2)
        waiting = asyncio.ensure_future(anext(stream))
        await anyio.lowlevel.checkpoint()
        made[0].left = True
        with pytest.raises(DeadlineExceeded):
            await waiting
        going_on.set()


async def test_items_are_collated_and_each_step_split():
    plugin = plugin_with()

    @plugin.batched(collate=tuple, split=lambda step: step["chunks"])
    def chunks(items: tuple[int, ...]):
        yield {"chunks": items}

    async with plugin.lifespan(Starlette()):
        assert await listed(chunks(1)) == [1]


async def test_shutdown_ends_streams():
    plugin = Plugin(Settings(pool={"threads": 1}, health={"drain_ms": 1}))
    going_on, begun = threading.Event(), asyncio.Event()

    @plugin.batched
    def held(items):
        yield items
        assert going_on.wait(30)

    async def take():
        async for _ in held(1):
            begun.set()

    async with plugin.lifespan(Starlette()):
        taking = asyncio.create_task(take())
        await begun.wait()
    with pytest.raises(Overloaded):
        await taking
    going_on.set()
    with pytest.raises(NotRunning):
        await listed(held(1))


async def test_methods_stream_too():
    plugin = plugin_with()

    class Model:
        factor = 2

        @plugin.batched
        def scaled(self, items: list[int]):
            yield [item * self.factor for item in items]

    async with plugin.lifespan(Starlette()):
        assert await listed(Model().scaled(3)) == [6]
