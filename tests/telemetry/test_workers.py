"""The files of several workers: whose is kept, whose is cleared away, and that no count is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from asgi_mlperf.telemetry.workers import Process, WorkerFiles

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")  # noqa: PTH110


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def files_of(directory, pid: int) -> None:
    for kind in ("counter", "histogram", "gauge_livesum", "gauge_all"):
        (directory / f"{kind}_{pid}.db").write_bytes(b"")


def left(directory) -> set[str]:
    return {path.name for path in directory.iterdir() if path.suffix == ".db"}


def noted(directory, worker: int, supervisor: Process) -> None:
    (directory / f"{worker}.worker").write_text(f"{worker} 1 {supervisor.pid} {supervisor.started}")


def test_what_a_server_left_that_is_gone_is_cleared_away(tmp_path, dead):
    files_of(tmp_path, dead)
    noted(tmp_path, dead, Process(dead, "1"))
    WorkerFiles(tmp_path).begin()
    assert left(tmp_path) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"asgi-mlperf.lock", f"{os.getpid()}.worker"}


def test_a_worker_that_was_replaced_leaves_its_counts_and_takes_its_gauges_along(tmp_path, dead):
    files_of(tmp_path, dead)
    noted(tmp_path, dead, Process.of(os.getpid()))
    WorkerFiles(tmp_path).begin()
    assert left(tmp_path) == {f"counter_{dead}.db", f"histogram_{dead}.db", f"gauge_all_{dead}.db"}


def test_counts_of_processes_that_noted_nothing_are_left_alone(tmp_path, dead):
    files_of(tmp_path, dead)
    with WorkerFiles(tmp_path).reading():
        assert left(tmp_path) == {f"counter_{dead}.db", f"histogram_{dead}.db", f"gauge_all_{dead}.db"}


def test_files_of_the_living_are_left_alone(tmp_path):
    files_of(tmp_path, os.getpid())
    files = WorkerFiles(tmp_path)
    files.begin()
    with files.reading():
        assert len(left(tmp_path)) == 4


def test_a_process_that_has_the_id_of_a_dead_one_is_not_taken_for_it(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        files_of(tmp_path, child.pid)
        noted(tmp_path, child.pid, Process(child.pid, "1"))
        WorkerFiles(tmp_path).begin()
        assert left(tmp_path) == set()
    finally:
        child.communicate(b"\n")


def test_a_directory_that_is_missing_is_made(tmp_path):
    WorkerFiles(tmp_path / "new" / "one").begin()
    assert (tmp_path / "new" / "one").is_dir()


def test_a_note_that_cannot_be_read_is_no_note(tmp_path, dead):
    files_of(tmp_path, dead)
    (tmp_path / f"{dead}.worker").write_text("nonsense")
    WorkerFiles(tmp_path).begin()
    assert f"counter_{dead}.db" in left(tmp_path)


def test_who_reads_waits_for_who_clears_away(tmp_path):
    files, entered, order = WorkerFiles(tmp_path), threading.Event(), []

    def begin():
        entered.set()
        files.begin()
        order.append("cleared")

    with files.reading():
        thread = threading.Thread(target=begin)
        thread.start()
        entered.wait()
        order.append("read")
    thread.join()
    assert order == ["read", "cleared"]


PROGRAM = """
import asyncio, gc, json, os, sys
from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.support import call
from asgi_mlperf import Plugin, Settings

own = Counter("own_things", "The user's own.")
own.inc()
inside = []

async def hello(request):
    inside.append(active(await scraped(request.app)))
    return PlainTextResponse("hello")

def made(**metrics):
    app = Starlette(routes=[Route("/{id}", hello)])
    plugin = Plugin(Settings(gc={"mode": "off"}, threads={"enabled": False}, metrics=metrics))
    plugin.install(app)
    return plugin, app

async def scraped(app):
    return (await call(app, "/metrics")).body.decode()

def value(text, start):
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start))

async def until_ready(app, count):
    async with asyncio.timeout(10):
        while value(await scraped(app), "asgi_mlperf_ready ") != count:
            pass
    return count

def active(text):
    return value(text, "http_server_active_requests ")

one, app_one = made(default_registry=False)
two, app_two = made(preset="fastapi-instrumentator")

async def main():
    told = {}
    async with one.lifespan(app_one):
        async with two.lifespan(app_two):
            for _ in range(3):
                await call(app_one, "/1")
                await call(app_two, "/2")
            text = await scraped(app_one)
            told["count"] = value(text, "http_server_request_duration_seconds_count")
            told["own with the default registry off"] = "own_things" in text
            text = await scraped(app_two)
            told["own with the default registry on"] = "own_things_total 1.0" in text
            told["preset"] = value(text, "http_requests_total")
            told["ready while both run"] = await until_ready(app_two, 2.0)
            told["rss"] = value(text, "asgi_mlperf_memory_rss_bytes") > 10_000_000
        await call(app_one, "/1")
        text = await scraped(app_one)
        told["count after one has ended"] = value(text, "http_server_request_duration_seconds_count")
        told["active after all"] = active(text)
        told["ready with one"] = await until_ready(app_one, 1.0)
    async with two.lifespan(app_two):
        await call(app_two, "/2")
        told["count after a restart"] = value(await scraped(app_two), "http_requests_total")
    told["active inside"] = inside
    print(json.dumps(told))

asyncio.run(main())
"""


def test_plugins_of_one_process_share_files_without_losing_a_count(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "count": 6.0,
        "own with the default registry off": False,
        "own with the default registry on": True,
        "preset": 6.0,
        "ready while both run": 2.0,
        "rss": True,
        "count after one has ended": 7.0,
        "active after all": 0.0,
        "ready with one": 1.0,
        "count after a restart": 8.0,
        "active inside": [1.0] * 8,
    }
