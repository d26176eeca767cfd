from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import anyio.to_thread
import pytest

from asgi_mlperf.host.early_threads import complaint, early_threads


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


def test_a_plain_thread_is_named_with_what_it_runs():
    before = early_threads()
    with Worker("queue-worker"):
        assert set(early_threads()) - set(before) == {f"queue-worker ({__name__}.Worker.run)"}
    assert early_threads() == before


def test_a_thread_of_the_standard_librarys_is_named_too():
    timer = threading.Timer(60, print)
    timer.start()
    try:
        assert f"{timer.name} (threading.Thread)" in early_threads()
    finally:
        timer.cancel()
        timer.join()


async def test_threads_whose_tasks_are_capped_are_not():
    before = early_threads()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        await anyio.to_thread.run_sync(int)
        assert early_threads() == before


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
        [named] = [each for each in early_threads() if "CRITICAL" in each]
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
