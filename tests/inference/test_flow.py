from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from tests.support import until

from asgi_mlperf import BatchError, Overloaded, Plugin, Settings
from asgi_mlperf.inference.flow import Flow

CHUNKS = 4
SLACK = CHUNKS + 1  # steps on their way to the event loop


class Counting:
    """A batched generator that counts for ever, and how far it has come."""

    def __init__(self, plugin: Plugin, kind: str) -> None:
        self.steps = 0
        self.ended = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.stream = plugin.batched({"plain": self.plain, "async": self.on_loop}[kind])

    def plain(self, items: list[Any]) -> Iterator[list[int]]:
        try:
            for self.steps in itertools.count(1):
                yield [self.steps] * len(items)
        finally:
            self.loop.call_soon_threadsafe(self.ended.set)

    async def on_loop(self, items: list[Any]) -> AsyncIterator[list[int]]:
        try:
            for self.steps in itertools.count(1):
                await anyio.lowlevel.checkpoint()
                yield [self.steps] * len(items)
        finally:
            self.ended.set()


def plugin_with(**batching: Any) -> Plugin:
    return Plugin(
        Settings(pool={"threads": 1}, batching={"stream_chunks": CHUNKS, **batching}, health={"drain_ms": 1})
    )


async def turns(count: int = 300) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@pytest.fixture(params=["plain", "async"])
async def begin(request) -> AsyncIterator[Callable[..., Counting]]:
    made: list[Counting] = []

    def counting(plugin: Plugin) -> Counting:
        made.append(Counting(plugin, request.param))
        return made[-1]

    yield counting
    for one in made:
        await one.ended.wait()


async def test_a_generator_waits_for_a_caller_that_takes_nothing(begin):
    counting = begin(plugin := plugin_with())
    async with plugin.lifespan(Starlette()), aclosing(counting.stream("item")) as stream:
        assert await anext(stream) == 1
        await until(lambda: counting.steps > CHUNKS)
        await turns()
        assert counting.steps <= 1 + CHUNKS + SLACK


async def test_it_goes_on_when_the_caller_does_and_nothing_is_lost(begin):
    counting = begin(plugin := plugin_with())
    async with plugin.lifespan(Starlette()), aclosing(counting.stream("item")) as stream:
        for expected in range(1, 30):
            await turns(10)
            assert await anext(stream) == expected


async def test_the_slowest_caller_sets_the_pace_until_it_leaves(begin):
    counting = begin(plugin := plugin_with())
    async with plugin.lifespan(Starlette()), aclosing(counting.stream("fast")) as fast:
        slow = counting.stream("slow")
        await asyncio.gather(anext(fast), anext(slow))
        for _ in range(CHUNKS):
            await anext(fast)
        await turns()
        assert counting.steps <= 1 + CHUNKS + SLACK
        await slow.aclose()
        assert [await anext(fast) for _ in range(50)][-1] == 1 + CHUNKS + 50


async def test_a_caller_that_takes_nothing_for_too_long_gets_an_error_and_the_others_go_on(begin):
    counting = begin(plugin := plugin_with(stall_ms=20))
    async with plugin.lifespan(Starlette()), aclosing(counting.stream("fast")) as fast:
        slow = counting.stream("slow")
        await asyncio.gather(anext(fast), anext(slow))
        assert [await anext(fast) for _ in range(50)][-1] == 51
        with pytest.raises(BatchError, match=r"ends, as nothing of it was taken for 0\.02 s"):
            _ = [chunk async for chunk in slow]


async def test_a_batch_that_waits_ends_at_shutdown(begin):
    counting = begin(plugin := plugin_with())
    async with plugin.lifespan(Starlette()):
        stream = counting.stream("item")
        assert await anext(stream) == 1
        await until(lambda: counting.steps > CHUNKS)
    with pytest.raises(Overloaded):
        _ = [chunk async for chunk in stream]


class Caller:
    name = "count"
    wanted = True

    error: BaseException | None = None

    def __init__(self, chunks: int) -> None:
        self.chunks = [None] * chunks

    def settle(self, result: None, error: BaseException) -> None:
        self.error = error


async def test_a_slow_caller_that_goes_on_taking_is_waited_for():
    moves: list[int] = []
    flow, caller = Flow(CHUNKS, 10, lambda: moves.append(1)), Caller(CHUNKS)
    flow.delivered([caller])
    flow._behind[caller] -= 20
    caller.chunks.pop()
    flow.took(caller)
    caller.chunks.append(None)
    flow.delivered([caller])
    flow._look()
    assert caller.error is None
    assert moves == [1]
    flow._behind[caller] -= 20
    flow._look()
    assert isinstance(caller.error, BatchError)


async def test_each_caller_has_its_own_time_to_take_something():
    flow, first, second = Flow(CHUNKS, 10, list), Caller(CHUNKS), Caller(CHUNKS)
    flow.delivered([first])
    flow._behind[first] -= 20
    flow.delivered([first, second])
    flow._look()
    assert first.error is not None
    assert second.error is None
    flow.end()


async def test_a_caller_whose_stream_has_ended_holds_up_nobody():
    flow, caller = Flow(CHUNKS, 10, list), Caller(CHUNKS)
    flow.delivered([caller])
    caller.wanted = False
    flow.delivered([caller])
    await flow.wait_on_loop()


async def test_who_takes_no_more_is_not_waited_for_however_much_was_kept():
    flow, caller = Flow(CHUNKS, 3_600, list), Caller(CHUNKS)
    flow.delivered([caller])
    waiting = asyncio.create_task(flow.wait_on_loop())
    await turns(3)
    assert not waiting.done()
    caller.wanted = False
    flow.end()
    await waiting
    flow.delivered([caller])
    await flow.wait_on_loop()
