from __future__ import annotations

import _thread
import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import thread as executors

import anyio
import anyio.to_thread
import pytest
from anyio._backends._asyncio import AsyncIOBackend

from asgi_mlperf.host.tasks import watching


def wrapped():
    return (
        vars(threading.Thread)["start"],
        _thread.start_new_thread,
        vars(executors._WorkItem)["run"],
        vars(AsyncIOBackend)["run_sync_in_worker_thread"],
    )


async def test_functions_of_anyios_threads_are_tasks(witness):
    with watching(witness):
        thread = await anyio.to_thread.run_sync(threading.get_ident)
        again = await anyio.to_thread.run_sync(threading.get_ident)
    assert thread == again
    assert witness.of(thread) == ["new", "begin", "end", "begin", "end"]


async def test_functions_of_asyncios_threads_are_tasks_in_threads_old_and_new(witness):
    with ThreadPoolExecutor(1) as old:
        old.submit(int).result()
        with watching(witness):
            new = await asyncio.to_thread(threading.get_ident)
            there = await asyncio.get_running_loop().run_in_executor(old, threading.get_ident)
    await asyncio.get_running_loop().shutdown_default_executor()  # a result comes before the end
    assert witness.of(new) == ["new", "begin", "end"]
    assert witness.of(there) == ["begin", "end"]


async def test_an_anyio_thread_that_was_there_before_is_told_of_its_next_task(witness):
    old = await anyio.to_thread.run_sync(threading.get_ident)
    with watching(witness):
        assert await anyio.to_thread.run_sync(threading.get_ident) == old
    assert witness.of(old) == ["begin", "end"]


def test_a_thread_is_told_of_whatever_its_class_makes_of_run(witness):
    class Own(threading.Thread):
        def run(self) -> None:
            witness.tell("run")

    with watching(witness):
        threads = [
            Own(),
            threading.Thread(target=witness.tell, args=("run",)),
            threading.Timer(0, witness.tell, ("run",)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert [what for what, _ in witness.told] == ["new", "run"] * 3
    assert all("run" not in vars(thread) for thread in threads)


def test_a_thread_without_an_object_is_told_of_too(witness):
    ended = threading.Lock()

    def run(*args, **options):
        witness.tell(f"run {args} {options}")
        ended.release()

    with watching(witness):
        ended.acquire()
        thread = _thread.start_new_thread(run, (1,), {"own": 2})
        ended.acquire()
        with pytest.raises(TypeError, match="callable"):
            _thread.start_new_thread(None, ())  # type: ignore[call-overload] # what is tested
    assert witness.of(thread) == ["new", "run (1,) {'own': 2}"]


async def test_results_errors_and_context_pass_unchanged(witness):
    def fail(what):
        raise LookupError(what)

    with watching(witness):
        assert await anyio.to_thread.run_sync(lambda: 7) == 7
        with pytest.raises(LookupError, match="here"):
            await anyio.to_thread.run_sync(fail, "here")
        with pytest.raises(LookupError, match="there"):
            await asyncio.to_thread(fail, "there")
    await asyncio.get_running_loop().shutdown_default_executor()  # a result comes before the end
    assert [what for what, _ in witness.told].count("end") == 3


async def test_the_plugins_own_long_lived_functions_are_no_tasks(witness):
    def serve():
        return threading.get_ident()

    serve.__module__ = "asgi_mlperf.inference.executors"
    with watching(witness):
        thread = await anyio.to_thread.run_sync(serve)
    assert "begin" not in witness.of(thread)


async def test_a_watcher_that_fails_fails_no_task(witness, caplog, monkeypatch):
    def fail():
        raise LookupError("no such library")

    monkeypatch.setattr(witness, "cap_new", fail)
    with caplog.at_level(logging.ERROR), watching(witness):
        assert await anyio.to_thread.run_sync(lambda: 7) == 7
    assert caplog.text.count("could not be capped") == 1


def test_a_thread_that_cannot_start_can_be_started_later(witness, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("can't start new thread")

    thread = threading.Thread(target=witness.tell, args=("run",))
    with watching(witness):
        with monkeypatch.context() as patch:
            since_3_13 = hasattr(threading, "_start_joinable_thread")
            patch.setattr(threading, "_start_joinable_thread" if since_3_13 else "_start_new_thread", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                thread.start()
        assert "run" not in vars(thread)


def test_everything_is_put_back(witness):
    before = wrapped()
    with watching(witness):
        assert all(now is not then for now, then in zip(wrapped(), before, strict=True))
    assert wrapped() == before


def test_what_something_else_wrapped_since_is_left_alone(witness):
    found = vars(threading.Thread)["start"]

    def others(thread):
        return None

    try:
        with watching(witness):
            threading.Thread.start = others  # type: ignore[method-assign] # what another library would do
        assert vars(threading.Thread)["start"] is others
    finally:
        threading.Thread.start = found  # type: ignore[method-assign] # as above


async def test_where_a_function_is_missing_threads_are_told_of_when_they_start(witness, monkeypatch, caplog):
    monkeypatch.setattr(executors, "_WorkItem", None)
    with caplog.at_level(logging.INFO), watching(witness):
        pass
    assert "run is not as asgi-mlperf knows it" in caplog.text
