"""Random batched functions under random load: every caller gets its own answer once, or its own error.

50,000 items here; ``STORM_ITEMS=1000000`` for all of them, ``STORM_SEED`` for other ones.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections import deque
from contextlib import aclosing
from typing import Any

import pytest
from starlette.applications import Starlette

from asgi_mlperf import BatchError, DeadlineExceeded, Overloaded, Plugin, Settings

ITEMS = int(os.environ.get("STORM_ITEMS", "50000"))
SEED = int(os.environ.get("STORM_SEED", "1"))
AT_ONCE = 5_000
_HALVINGS = 6


class Bad(Exception):
    """The model's error for one item, or for all."""


class Item:
    __slots__ = ("cost", "fate", "key", "number")

    def __init__(self, number: int, chance: random.Random):
        self.number = number
        self.key = chance.choice("aaaab" + "cdef")
        self.cost = chance.randint(0, 12)
        self.fate = chance.choices(("good", "returned", "raised"), (94, 4, 2))[0]


class Storm:
    """Batched functions that note what they were given, and callers that check what they get."""

    def __init__(self, plugin: Plugin, chance: random.Random):
        self.chance = chance
        self.computed: dict[int, int] = {}
        self.answers: list[str] = []
        self.last: dict[tuple[str, str], int] = {}
        self.disorder: list[int] = []
        self.too_often: list[int] = []
        options: dict[str, Any] = {
            "key": lambda item: item.key,
            "cost": lambda item: item.cost,
            "max_cost": 40,
        }
        self.functions: list[Any] = [
            plugin.batched(self.function(name, retry=bool(more.get("retry"))), **more)
            for name, more in self.declared(options).items()
        ]
        self.functions.append(plugin.batched(self.on_loop, max_size=16, **options))
        self.streams = [plugin.batched(self.stream, max_size=8), plugin.batched(self.stream_on_loop)]

    def declared(self, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            "auto": {"max_size": 16},
            "inline": {"max_size": 8, "executor": "inline", **options},
            "thread": {"max_size": 32, "executor": "thread", **options},
            "bisected": {"max_size": 32, "executor": "thread", "retry": "bisect", **options},
            "bisected inline": {"max_size": 9, "executor": "inline", "retry": "bisect"},
        }

    def compute(self, items: list[Item], most: int = 1) -> list[Any]:
        for item in items:
            self.computed[item.number] = times = self.computed.get(item.number, 0) + 1
            if times > most:
                self.too_often.append(item.number)
        if any(item.fate == "raised" for item in items):
            raise Bad("batch")
        return [Bad(item.number) if item.fate == "returned" else -item.number for item in items]

    def function(self, name: str, *, retry: bool):
        def compute(items: list[Item]) -> list[Any]:
            if retry:
                return self.compute(items, _HALVINGS)
            self.check_order(name, items)
            return self.compute(items)

        return compute

    def check_order(self, name: str, items: list[Item]) -> None:
        """Numbers rise with the arrivals, so within each key too; with one slot no two batches race."""
        for item in items:
            place = (name, item.key)
            if self.last.get(place, -1) > item.number:
                self.disorder.append(item.number)
            self.last[place] = item.number

    async def on_loop(self, items: list[Item]) -> list[Any]:
        await asyncio.sleep(0)
        return self.compute(items)

    def stream(self, items: list[Item]):
        yield self.compute(items)
        yield [item.number for item in items]

    async def stream_on_loop(self, items: list[Item]):
        yield self.compute(items)
        await asyncio.sleep(0)
        yield [item.number for item in items]

    async def caller(self, item: Item) -> None:
        kind = self.chance.random()
        timeout = self.chance.choice((None, None, None, math.inf, 0.5, 0.02, 0.0))
        try:
            if kind < 0.9:
                function = self.functions[item.number % len(self.functions)]
                answer = await function(item, timeout=timeout)
            else:
                answer = await self.taken(self.streams[item.number % 2](item, timeout=timeout), item)
        except Bad as error:
            own = error.args in (("batch",), (item.number,))
            self.answers.append("error" if own else f"wrong: {error!r}")
        except (DeadlineExceeded, Overloaded, BatchError) as error:
            self.answers.append(type(error).__name__)
        else:
            assert answer == -item.number
            assert item.fate == "good"
            assert self.computed[item.number] >= 1
            self.answers.append("result")

    async def taken(self, stream, item: Item) -> int:
        async with aclosing(stream) as chunks:
            answer: int = await anext(chunks)
            if self.chance.random() < 0.8:
                assert [chunk async for chunk in chunks] == [item.number]
            return answer

    async def rage(self, items: int) -> None:
        """Keep about ``AT_ONCE`` callers waiting; cancel some at some time."""
        running: set[asyncio.Task[None]] = set()
        recent: deque[asyncio.Task[None]] = deque(maxlen=500)
        number = 0
        while number < items:
            for _ in range(self.chance.choice((1, 3, 30, 300))):
                task = asyncio.create_task(self.caller(Item(number, self.chance)))
                task.add_done_callback(self.ended)
                running.add(task)
                recent.append(task)
                task.add_done_callback(running.discard)
                number += 1
            for _ in range(self.chance.choice((0, 1, 2))):
                await asyncio.sleep(0)
            if self.chance.random() < 0.3:
                for _ in range(3):
                    self.chance.choice(recent).cancel()
            while len(running) > AT_ONCE:  # noqa: ASYNC110 - turns are what the callers need
                await asyncio.sleep(0)
        self.asked = number
        while running:
            await asyncio.wait(running)

    def ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.answers.append("cancelled")
        elif task.exception():
            self.answers.append(f"wrong: {task.exception()!r}")


async def now_and_then_a_crash(storm: Storm, plugin: Plugin, monkeypatch) -> None:
    from asgi_mlperf.inference.backlog import Backlog

    take, chance = Backlog.take, random.Random(SEED)

    def failing(self, *args):
        if chance.random() < 0.001:
            raise RuntimeError("a crash")
        return take(self, *args)

    monkeypatch.setattr(Backlog, "take", failing)


@pytest.mark.usefixtures("untraced")
@pytest.mark.timeout(3_600)
async def test_every_caller_gets_its_own_answer_exactly_once_and_nothing_is_left(monkeypatch, caplog):
    caplog.set_level("CRITICAL")
    monkeypatch.setattr("asgi_mlperf.inference.batching._FIRST_RESTART_S", 0.001)
    monkeypatch.setattr("asgi_mlperf.inference.batching._LONGEST_RESTART_S", 0.01)
    plugin, app = Plugin(Settings(pool={"threads": 1, "max_queue": 1_000})), Starlette()
    storm = Storm(plugin, random.Random(SEED))
    async with plugin.lifespan(app):
        await now_and_then_a_crash(storm, plugin, monkeypatch)
        await storm.rage(ITEMS // 2)  # once for each event loop
        engine = plugin._engine()
        batchers = list(engine._batchers)
        for _ in range(20):
            await asyncio.sleep(0)
        assert [batcher.waiting for batcher in batchers] == [0] * len(storm.functions + storm.streams)
        for pool in {id(batcher.pool): batcher.pool for batcher in batchers}.values():
            await pool.drain(30)
            assert (pool._admission.running, len(pool._admission), pool._announced) == (0, 0, 0)
    assert len(storm.answers) == storm.asked
    assert [answer for answer in storm.answers if answer.startswith("wrong")] == []
    counts = {answer: storm.answers.count(answer) for answer in set(storm.answers)}
    assert set(counts) == {"result", "error", "cancelled", "DeadlineExceeded", "Overloaded", "BatchError"}
    assert counts["result"] > ITEMS / 50  # the rest depends on how fast the machine is
    assert (storm.disorder, storm.too_often) == ([], [])
