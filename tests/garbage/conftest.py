from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from asgi_mlperf.garbage.collector import Collector
from asgi_mlperf.garbage.freezer import Freezer
from asgi_mlperf.garbage.kinds import CollectorKind
from asgi_mlperf.garbage.pauses import Pauses
from asgi_mlperf.garbage.settings import GarbageSettings
from asgi_mlperf.hooks import Traffic

MIB = 1 << 20
NEVER = 2**31 - 1


class FakeLoop:
    """Runs what it was called with when it is told to."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.closed = False

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.soon.append(callback)

    def step(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Bench:
    """A collector whose clock, memory, loop and neighbours the test rules; the gc is the real one."""

    def __init__(self, **settings: Any) -> None:
        self.kind = CollectorKind.GENERATIONAL
        self.limit: int | None = None
        self.now = 1_000.0
        self.tick = 0.0
        self.rss = 300 * MIB
        self.mine = True
        self.loop: Any = FakeLoop()
        self.traffic = Traffic()
        self.pauses = Pauses(self.clock, self.traffic)
        self.settings = GarbageSettings(check_ms=3_600_000, **settings)

    def clock(self) -> float:
        """Seconds; with a ``tick``, each look at the clock takes so long."""
        self.now += self.tick
        return self.now

    @contextmanager
    def scheduling(self) -> Iterator[Collector]:
        freezer = Freezer()
        with self.pauses.watching(), freezer.frozen():
            self.freezer = freezer
            self.collector = Collector(
                self.settings,
                kind=self.kind,
                loop=self.loop,
                clock=self.clock,
                traffic=self.traffic,
                pauses=self.pauses,
                freezer=freezer,
                turn=self.turn,
                rss=lambda: self.rss,
                memory_limit=self.limit,
            )
            with self.collector.scheduling():
                list(self.pauses.drain())
                yield self.collector

    @contextmanager
    def turn(self) -> Iterator[bool]:
        yield self.mine

    def request(self, work: Callable[[], Any] = lambda: None) -> None:
        """One request that does ``work`` and ends, and the loop's next step."""
        exchange: Any = SimpleNamespace()
        closer = self.collector.request_ended
        self.traffic.in_flight += 1
        work()
        self.traffic.in_flight -= 1
        closer(exchange)
        self.loop.step()

    def passes(self) -> list[tuple[int, str]]:
        return [(pause.generation, pause.where) for pause in self.pauses.drain()]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def cycles(count: int) -> None:
    """Leave so many objects that only the collector can free."""
    for _ in range(count):
        cycle: list[Any] = []
        cycle.append(cycle)


@pytest.fixture
def quiet_gc() -> Iterator[None]:
    """Keep CPython from collecting by itself, so that what a test counts is what it did."""
    found = gc.get_threshold()
    gc.set_threshold(NEVER, 10, 10)
    yield
    gc.set_threshold(*found)
