"""AnyIO's worker threads wait for their functions in C, and behave as ever."""

from __future__ import annotations

import threading
from queue import Queue

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio._backends import _asyncio as anyio_asyncio

from asgi_mlperf.host import handover
from asgi_mlperf.host.handover import Handover, quicken
from asgi_mlperf.host.tasks import watching


def own_queue():
    return type(vars(threading.current_thread())["queue"])


async def test_only_threads_that_start_inside_are_quicker_and_outside_they_start_as_ever(witness):
    async with anyio.create_task_group() as group:  # its task is the root of these threads
        assert await anyio.to_thread.run_sync(own_queue) is Queue
        with watching(witness):
            assert await anyio.to_thread.run_sync(own_queue) is Queue, "that thread was there before"
            busy, found = threading.Event(), []
            group.start_soon(anyio.to_thread.run_sync, busy.wait)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            found.append(await anyio.to_thread.run_sync(own_queue))
            busy.set()
        assert found == [Handover]


async def test_results_errors_and_calls_back_into_the_loop_arrive_in_any_number(witness):
    def twice(number):
        if number % 7 == 0:
            raise ValueError(number)
        return anyio.from_thread.run(doubled, number) if number % 2 else number * 2

    async def doubled(number):
        await anyio.lowlevel.checkpoint()
        return number * 2

    async def one(number):
        try:
            answers[number] = await anyio.to_thread.run_sync(twice, number)
        except ValueError as error:
            answers[number] = error.args

    answers = {}
    with watching(witness):
        async with anyio.create_task_group() as group:
            for number in range(500):
                group.start_soon(one, number)
    assert answers == {number: (number,) if number % 7 == 0 else number * 2 for number in range(500)}


async def test_a_function_that_nobody_waits_for_any_more_ends_and_its_thread_takes_the_next(witness):
    with watching(witness):
        ends = threading.Event()
        with anyio.move_on_after(0) as scope:
            await anyio.to_thread.run_sync(ends.wait, abandon_on_cancel=True)
        assert scope.cancelled_caught
        ends.set()
        assert await anyio.to_thread.run_sync(own_queue) is Handover


def test_what_is_not_anyios_or_waits_otherwise_is_left_alone():
    class Other(Queue[object]):
        pass

    thread, worker = threading.Thread(), object.__new__(anyio_asyncio.WorkerThread)
    for each, queue in ((thread, Queue()), (worker, Other())):
        vars(each)["queue"] = queue
        quicken(each)
        assert vars(each)["queue"] is queue


@pytest.mark.parametrize(
    ("owner", "name"), [("WorkerThread", "run"), ("AsyncIOBackend", "run_sync_in_worker_thread")]
)
def test_a_version_of_anyio_that_needs_more_of_a_queue_is_left_alone(monkeypatch, owner, name):
    assert handover._known_worker() is anyio_asyncio.WorkerThread
    monkeypatch.setattr(getattr(anyio_asyncio, owner), name, lambda thread: thread.queue.join())
    assert handover._known_worker() is None
    monkeypatch.delattr(anyio_asyncio, owner)
    assert handover._known_worker() is None
