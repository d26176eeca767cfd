from __future__ import annotations

import dataclasses
import logging
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.host.fakes import FakeLibrary, in_new_thread

from asgi_mlperf.host import libraries
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.widths import Widths


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def openmp():
    return FakeLibrary("openmp", 8, per_thread=True)


@pytest.fixture
def openblas():
    return FakeLibrary("openblas", 8, per_thread=False)


@pytest.fixture
def torch():
    return FakeLibrary("torch", 8, per_thread=True)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def caps(monkeypatch, openmp, openblas, torch, clock):
    monkeypatch.setattr(
        libraries, "loaded", lambda _=None: [each.library for each in (openmp, openblas, torch)]
    )
    monkeypatch.setattr(libraries, "look_up", lambda: None)
    monkeypatch.setattr(libraries, "set_interop", lambda threads: None)
    caps = NativeThreadCaps(Widths(alone=4, share=1, process=1), interop=1, clock=clock)
    caps.refresh()
    return caps


def width(caps, library):
    """What a task sees, in the calling thread."""
    return caps.call(library.get)


def test_a_task_alone_gets_the_whole_budget_in_every_library(caps, openmp, openblas, torch):
    assert [width(caps, library) for library in (openmp, openblas, torch)] == [4, 4, 4]


def test_tasks_that_run_at_once_share_the_budget_in_whatever_threads(caps, openmp, openblas):
    caps.begin()
    assert in_new_thread(width, caps, openmp) == 2
    assert in_new_thread(width, caps, openblas) == 1
    caps.end()


def test_what_a_task_held_goes_to_those_that_begin_after_its_end(caps, openmp, openblas):
    with ThreadPoolExecutor(1) as other:
        other.submit(caps.begin).result()
        assert width(caps, openmp) == 2
        other.submit(caps.end).result()
        assert (width(caps, openmp), openblas.get()) == (4, 4)


def test_a_failing_task_gives_its_part_back(caps, openmp):
    def fail():
        raise LookupError

    with pytest.raises(LookupError):
        in_new_thread_raising(lambda: caps.call(fail))
    assert width(caps, openmp) == 4


def in_new_thread_raising(func):
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(func).result()


def test_a_new_thread_of_which_nothing_is_known_gets_its_share(caps, openmp):
    def look():
        caps.cap_new()
        return openmp.get()

    assert in_new_thread(look) == 1


def test_a_new_thread_is_placed(monkeypatch):
    placed = []
    NativeThreadCaps(Widths(1, 1, 1), interop=1, place_new=lambda: placed.append(1)).cap_new()
    assert placed == [1]


def test_a_thread_that_ran_ops_before_the_caps_is_capped_with_its_next_task(caps, openmp):
    with ThreadPoolExecutor(1) as old:
        old.submit(openmp.set, 8).result()
        assert old.submit(width, caps, openmp).result() == 4


def test_the_event_loop_counts_as_one_more_task(caps, openmp, openblas):
    caps.begin_on_loop()
    assert (openmp.get(), openblas.get()) == (4, 4)
    with ThreadPoolExecutor(1) as other:
        other.submit(caps.begin).result()
        caps.begin_on_loop()
        assert (openmp.get(), openblas.get()) == (2, 1)
        other.submit(caps.end).result()


def test_where_every_op_has_one_thread_tasks_are_of_no_concern_to_the_event_loop(monkeypatch, openmp, clock):
    monkeypatch.setattr(libraries, "loaded", lambda _=None: [openmp.library])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))  # whatever is imported meanwhile
    caps = NativeThreadCaps(Widths(1, 1, 1), interop=1, clock=clock)
    caps.refresh()
    for _ in range(2):
        caps.begin_on_loop()
    monkeypatch.setattr(caps, "_settle_loop", lambda: pytest.fail("capped again"))
    caps.call(openmp.get)
    caps.begin_on_loop()


def test_nothing_is_set_again_while_nothing_changes(caps, openmp, openblas, torch):
    width(caps, openmp)
    for library in (openmp, openblas, torch):
        library.sets.clear()
    for _ in range(100):
        width(caps, openmp)
    assert openmp.sets + openblas.sets + torch.sets == []


def test_no_cap_is_above_what_was_found(monkeypatch, openmp, clock):
    modest = FakeLibrary("modest", 2, per_thread=True)
    monkeypatch.setattr(libraries, "loaded", lambda _=None: [modest.library])
    caps = NativeThreadCaps(Widths(4, 1, 1), interop=1, clock=clock)
    caps.refresh()
    assert width(caps, modest) == 2


def test_a_library_that_is_imported_later_is_capped_within_a_second(caps, monkeypatch, openmp, clock):
    late = FakeLibrary("late", 8, per_thread=True)
    monkeypatch.setattr(libraries, "loaded", lambda _=None: [openmp.library, late.library])
    monkeypatch.setitem(sys.modules, "asgi_mlperf_late", types.ModuleType("late"))
    assert width(caps, late) == 8
    clock.now += 1
    assert width(caps, late) == 4
    assert in_new_thread(width, caps, late) == 4


def test_looking_for_libraries_waits_for_an_import(caps, monkeypatch, clock):
    clock.now += 1
    monkeypatch.setattr(libraries, "loaded", lambda _=None: pytest.fail("looked"))
    caps.begin_on_loop()


def test_a_count_that_the_app_sets_is_reported_once_and_not_fought(caps, torch, openmp, caplog):
    def handler():
        torch.set(3)

    with ThreadPoolExecutor(1) as thread, caplog.at_level(logging.WARNING):
        thread.submit(caps.call, handler).result()
        assert [thread.submit(width, caps, torch).result() for _ in range(3)] == [3, 3, 3]
        thread.submit(caps.call, handler).result()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ASGI_MLPERF_THREADS__NATIVE" in caplog.text
    assert in_new_thread(width, caps, torch) == 3
    assert in_new_thread(width, caps, openmp) == 4


def test_a_count_that_the_app_sets_on_the_event_loop_is_noticed_with_the_next_request(caps, torch, caplog):
    caps.begin_on_loop()
    torch.set(2)
    caps.begin_on_loop()
    assert torch.get() == 2
    assert "torch's threads to 2" in caplog.text


def test_a_task_that_puts_torchs_count_back_is_not_reported(caps, torch, caplog):
    def handler():
        before = torch.get()
        torch.set(1)
        torch.set(before)

    caps.call(handler)
    assert caplog.text == ""


@pytest.mark.parametrize("wide", [1, 2])
def test_a_task_that_cannot_be_capped_runs_all_the_same(wide, caplog, monkeypatch):
    def fail():
        raise LookupError("no such library")

    caps = NativeThreadCaps(Widths(wide, 1, 1), interop=1)
    monkeypatch.setattr(caps, "begin", fail)
    assert caps.call(pow, 2, 3) == 8
    assert "could not be capped" in caplog.text


def test_a_thread_that_rests_is_capped_anew_with_its_next_task(monkeypatch, clock):
    rests = []
    fake = FakeLibrary("libgomp", 8, per_thread=True)

    def rest():
        rests.append(1)
        fake.set(8)

    resting = dataclasses.replace(fake.library, rest=rest)
    plain = FakeLibrary("libomp", 8, per_thread=True)
    monkeypatch.setattr(libraries, "loaded", lambda _=None: [resting, plain.library])
    caps = NativeThreadCaps(Widths(4, 1, 1), interop=1, clock=clock)
    caps.refresh()
    assert width(caps, fake) == 4
    caps.rest()
    assert rests == [1]
    assert width(caps, fake) == 4


def test_a_thread_from_before_is_capped_but_keeps_what_it_had_set_lower(monkeypatch, torch):
    monkeypatch.setattr(libraries, "loaded", lambda _=None: [torch.library])
    monkeypatch.setattr(libraries, "set_interop", lambda threads: None)
    caps = NativeThreadCaps(Widths(alone=4, share=2, process=1), interop=1)
    caps.refresh()

    def cap(count):
        torch.set(count)
        caps.cap_early()
        return torch.get()

    with ThreadPoolExecutor(1) as executor:
        assert [executor.submit(cap, count).result() for count in (8, 1)] == [2, 1]


def test_what_is_above_the_workers_cpus_is_out_of_reach_of_other_threads(caps):
    assert caps.out_of_reach(2) == {"openmp": 8, "torch": 8}


def test_restore_gives_back_what_was_found_and_caps_nothing_more(caps, openmp, openblas, torch, clock):
    caps.begin_on_loop()
    caps.restore()
    assert [openmp.get(), openblas.get(), torch.get()] == [8, 8, 8]
    clock.now += 10
    assert [width(caps, library) for library in (openmp, openblas, torch)] == [8, 8, 8]


def test_a_count_that_the_app_chose_survives_the_plugin(caps, torch):
    caps.begin_on_loop()
    torch.set(2)
    caps.begin_on_loop()
    caps.restore()
    assert torch.get() == 2


def test_the_widest_of_libraries_of_one_name_is_reported(monkeypatch, clock):
    ours, theirs = FakeLibrary("libgomp", 8, per_thread=True), FakeLibrary("libgomp", 2, per_thread=True)
    loaded = [
        libraries.Library("libgomp", str(n), each.library.found, True, each.get, each.set)
        for n, each in enumerate((ours, theirs))
    ]
    monkeypatch.setattr(libraries, "loaded", lambda _=None: loaded)
    caps = NativeThreadCaps(Widths(4, 1, 1), interop=1, clock=clock)
    caps.refresh()
    assert caps.report() == {"libgomp": 8}


def test_a_forked_event_loop_keeps_to_one_thread_and_says_why(monkeypatch, openmp, clock, caplog):
    monkeypatch.setattr(libraries, "loaded", lambda _=None: [openmp.library])
    monkeypatch.setattr("asgi_mlperf.host.threads._IMPORTED_IN", -1)
    caps = NativeThreadCaps(Widths(4, 1, 1), interop=1, clock=clock)
    caps.refresh()
    caps.begin_on_loop()
    assert openmp.get() == 1
    assert in_new_thread(width, caps, openmp) == 4
    assert "--preload" in caplog.text
