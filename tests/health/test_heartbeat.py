from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from asgi_mlperf.health.heartbeat import Heartbeat

LIMIT_S = 8.0


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop whose timers are due when the test says so."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None], Timer]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer()
        self.timers.append((delay_s, callback, timer))
        return timer


class World:
    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.now = 100.0
        self.loop = Loop()
        self.heartbeat = Heartbeat(
            self.loop, limit_s=limit_s, clock=lambda: self.now, where=lambda thread: f", at line {thread}"
        )

    def turn(self, late_s: float = 0.0) -> None:
        """Let the loop come to its next beat, this late."""
        delay_s, beat, _ = self.loop.timers.pop()
        self.now += delay_s + late_s
        beat()


@pytest.fixture
def world():
    world = World()
    with world.heartbeat.beating():
        yield world


def test_a_loop_that_turns_lives(world):
    for _ in range(100):
        world.turn(late_s=LIMIT_S * 0.9)
    assert world.heartbeat.reasons() == []


def test_a_loop_that_was_stuck_is_not_alive_until_it_has_turned_as_long_as_the_limit(world):
    world.turn(late_s=LIMIT_S + 1)
    assert world.heartbeat.reasons() == ["the event loop was stuck for 9.0 s until 0.0 s ago"]
    for _ in range(7):
        world.turn()
    assert world.heartbeat.reasons() == ["the event loop was stuck for 9.0 s until 7.0 s ago"]
    world.turn()
    assert world.heartbeat.reasons() == []


def test_a_probe_that_is_answered_before_the_late_beat_knows_of_it_too(world):
    world.now += 20.0
    assert world.heartbeat.reasons() == ["the event loop was stuck for 19.0 s until 0.0 s ago"]


def test_a_loop_that_is_stuck_is_told_once_each_time_and_where(world, caplog):
    for _ in range(2):
        caplog.clear()
        world.now += LIMIT_S + 2
        world.heartbeat.look()
        world.heartbeat.look()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        where = f", at line {threading.get_ident()}"
        assert f"the event loop is stuck for 9.0 s{where}" in record.message
        assert world.heartbeat.reasons()[0].endswith(where)
        world.turn()


def test_a_loop_that_is_a_little_late_is_not_told(world, caplog):
    world.now += LIMIT_S * 0.9
    world.heartbeat.look()
    assert caplog.records == []


def test_after_the_end_nothing_beats_and_nothing_is_held_against_the_loop():
    world = World()
    with world.heartbeat.beating():
        ((_, _, timer),) = world.loop.timers
    world.now += 100
    assert timer.cancelled
    assert world.heartbeat.reasons() == []


async def test_a_real_loop_that_is_blocked_is_found_by_the_thread_while_it_is():
    found = threading.Event()

    def where(thread: int) -> str:
        found.set()
        return ", in the test"

    heartbeat = Heartbeat(asyncio.get_running_loop(), limit_s=0.1, clock=time.monotonic, where=where)
    with heartbeat.beating():
        assert found.wait(10)  # blocks the loop
        assert "in the test" in heartbeat.reasons()[0]


def threads() -> list[Any]:
    return [thread for thread in threading.enumerate() if thread.name == "asgi-mlperf-health"]


async def test_the_thread_ends_with_the_block():
    heartbeat = Heartbeat(asyncio.get_running_loop(), limit_s=60.0, clock=lambda: 0.0, where=str)
    before = set(threads())
    with heartbeat.beating():
        (thread,) = set(threads()) - before
    thread.join(10)
    assert not thread.is_alive()
