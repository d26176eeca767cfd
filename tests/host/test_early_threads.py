from __future__ import annotations

import _thread
import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import anyio.to_thread
import pytest
from tests.host.waiting import Waiting, until

from asgi_mlperf.host.early_threads import complaint, early_threads, early_threads_capped
from asgi_mlperf.host.widths import Widths


class Worker(threading.Thread):
    """An app's own thread, which waits for work."""

    def __init__(self, name):
        super().__init__(name=name)
        self.stop, self.waits = threading.Event(), threading.Event()

    def run(self):
        self.waits.set()
        self.stop.wait()

    def __enter__(self):
        self.start()
        self.waits.wait()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.join()


class Caps:
    """Tells which threads were capped."""

    widths = Widths(alone=2, share=1, process=1)

    def __init__(self, found):
        self._found, self.capped = found, []

    def out_of_reach(self, allowed):
        return {"torch": self._found} if self._found > allowed else {}

    def cap_early(self):
        self.capped.append(get_ident())


@pytest.fixture
def unreachable(monkeypatch):
    """Stand for a Python without the GIL."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)


def test_a_thread_is_capped_at_its_next_step(caplog):
    caps = Caps(found=8)
    with Waiting(caps.capped.copy) as thread, early_threads_capped(caps):
        assert thread.tell() == [thread.ident]
    assert caplog.text == ""


def test_it_is_not_where_its_share_is_all_that_it_may_use():
    caps = Caps(found=1)
    with Waiting(caps.capped.copy) as thread, early_threads_capped(caps):
        assert thread.tell() == []


@pytest.mark.parametrize(("found", "is_told"), [(8, True), (2, False)])
def test_one_that_cannot_be_reached_is_named_if_its_ops_exceed_the_worker(
    unreachable, caplog, found, is_told
):
    caps = Caps(found)
    with Worker("queue-worker"), early_threads_capped(caps):
        assert (f"queue-worker ({__name__}.Worker.run)" in caplog.text) == is_told


def test_an_executors_task_is_not_named_as_its_next_one_is_capped(unreachable, caplog):
    stop, begun = threading.Event(), threading.Event()

    def task():
        begun.set()
        stop.wait()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(task)
        begun.wait()
        with early_threads_capped(Caps(found=8)):
            stop.set()
    assert "executor" not in caplog.text.lower()


def test_a_cap_that_fails_is_logged_and_stays_out_of_the_thread(monkeypatch, caplog):
    caps = Caps(found=8)
    monkeypatch.setattr(caps, "cap_early", lambda: 1 / 0)
    with Waiting(lambda: "went on") as thread, early_threads_capped(caps):
        assert thread.tell() == "went on"
    assert "ZeroDivisionError" in caplog.text


def names():
    return sorted(early_threads().values())


def test_a_plain_thread_is_named_with_what_it_runs():
    before = early_threads()
    with Worker("queue-worker"):
        now = early_threads()
        assert [now[thread] for thread in now.keys() - before.keys()] == [
            f"queue-worker ({__name__}.Worker.run)"
        ]
    assert early_threads() == before


def test_so_is_one_without_an_object():
    stop, ended, begun = (threading.Lock() for _ in range(3))
    for lock in (stop, ended, begun):
        lock.acquire()

    def run():
        begun.release()
        stop.acquire()
        ended.release()

    thread = _thread.start_new_thread(run, ())
    begun.acquire()
    assert early_threads()[thread].startswith(f"_thread ({__name__}.test_so_is_one")
    stop.release()
    ended.acquire()


async def test_tasks_that_run_are_there_without_a_name():
    stop, begun = threading.Event(), threading.Barrier(3)

    def task():
        begun.wait()
        stop.wait()
        return get_ident()

    with ThreadPoolExecutor(1) as executor:
        of_executor = asyncio.get_running_loop().run_in_executor(executor, task)
        of_anyio = asyncio.create_task(anyio.to_thread.run_sync(task))
        await asyncio.to_thread(begun.wait)
        early = early_threads()
        stop.set()
        assert [early[await each] for each in (of_executor, of_anyio)] == ["", ""]


def worker(begun, stop):
    begun.set()
    stop.wait()


def test_a_thread_pools_threads_run_models(monkeypatch):
    begun, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=worker, args=(begun, stop), name="Thread-1")
    thread.start()
    begun.wait()
    with Worker("one-that-handles-tasks"):
        monkeypatch.setitem(globals(), "__name__", "multiprocessing.pool")
        assert [name for name in names() if "multiprocessing" in name] == [
            "Thread-1 (multiprocessing.pool.worker)"
        ]
    stop.set()
    thread.join()


def test_a_thread_of_the_standard_librarys_is_named_too():
    timer = threading.Timer(60, print)
    timer.start()
    try:
        assert f"{timer.name} (threading.Thread)" in names()
    finally:
        timer.cancel()
        timer.join()


async def test_threads_whose_tasks_are_capped_are_not():
    before = early_threads()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        await anyio.to_thread.run_sync(int)
        until(lambda: early_threads() == before)  # a result comes before the end


@pytest.mark.parametrize("module", ["uvicorn.supervisors.multiprocess", "logging.handlers"])
def test_a_servers_own_threads_are_not(monkeypatch, module):
    before = early_threads()
    with Worker("pong"):
        monkeypatch.setitem(globals(), "__name__", module)
        assert early_threads() == before


def test_executors_threads_are_known_whatever_wraps_their_start(monkeypatch):
    run = threading.Thread.run
    monkeypatch.setattr(threading.Thread, "run", lambda thread: run(thread))  # noqa: PLW0108 - a frame of its own
    before = early_threads()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        assert early_threads() == before


def test_names_cannot_forge_a_line_of_the_log():
    with Worker("x\nCRITICAL " + "y" * 1000):
        [named] = [each for each in names() if "CRITICAL" in each]
    assert "\n" not in named
    assert len(named) < 200
    many = [f"worker-{number}" for number in range(200)]
    assert "worker-4 and 195 more" in complaint(many, {"torch": 8}, 2)


def test_they_are_told_with_the_fix():
    text = complaint(["queue-worker (app.serve)"], {"torch": 8, "libgomp": 4}, 2)
    for part in (
        "queue-worker (app.serve)",
        "8 native threads (torch)",
        "has 2",
        "lifespan",
        "OMP_NUM_THREADS=2",
    ):
        assert part in text
