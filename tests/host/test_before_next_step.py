"""A function is called in other threads before their next step, in the way of the Python that runs this."""

from __future__ import annotations

import _thread
import socket
import sys
import threading
import traceback
from contextlib import ExitStack
from threading import get_ident

import pytest
from tests.host.waiting import Calls, Waiting, frame_of

from asgi_mlperf.host import next_steps, thread_states

HAS_MONITORING = hasattr(sys, "monitoring")
WAY = next_steps if HAS_MONITORING else thread_states


@pytest.fixture
def calls():
    return Calls()


def ignore(*_):
    return None


def test_a_threads_next_step_comes_after_the_call(calls):
    with Waiting(calls.copy) as thread, WAY.before_next_step({thread.ident}, calls.note) as missed:
        assert missed == set()
        assert calls == []
        assert thread.tell() == [thread.ident]


def test_there_is_one_call_however_many_steps(calls):
    with Waiting(calls.copy) as thread, WAY.before_next_step({thread.ident}, calls.note):
        assert [thread.tell() for _ in range(3)][-1] == [thread.ident]


def test_others_that_run_the_same_functions_are_not_called(calls):
    with (
        Waiting(calls.copy) as thread,
        Waiting(calls.copy) as other,
        WAY.before_next_step({thread.ident}, calls.note),
    ):
        assert [other.tell() for _ in range(3)] == [[]] * 3
        assert thread.tell() == [thread.ident]
        assert other.tell() == [thread.ident]


def test_each_of_many_is_called(calls):
    with ExitStack() as stack:
        threads = [stack.enter_context(Waiting(calls.copy)) for _ in range(20)]
        with WAY.before_next_step([thread.ident for thread in threads], calls.note):
            for thread in threads:
                assert thread.ident in thread.tell()
    assert sorted(calls) == sorted(thread.ident for thread in threads)


def test_a_thread_without_a_next_step_in_time_is_left_alone(calls):
    with Waiting(calls.copy) as thread:
        with WAY.before_next_step({thread.ident}, calls.note):
            pass
        assert thread.tell() == []


def test_it_can_be_done_again(calls):
    with Waiting(calls.copy) as thread:
        for times in (1, 2):
            with WAY.before_next_step({thread.ident}, calls.note):
                assert thread.tell() == [thread.ident] * times


@pytest.mark.parametrize("function", [sys.gettrace, sys.getprofile])
@pytest.mark.parametrize("is_called", [True, False])
def test_no_trace_or_profile_function_stays(calls, function, is_called):
    with Waiting(function) as thread:
        with WAY.before_next_step({thread.ident}, calls.note):
            assert not is_called or thread.tell() is None
        assert thread.tell() is None
        assert not any(frame.f_trace_opcodes for frame, _ in traceback.walk_stack(frame_of(thread)))
    assert len(calls) == is_called


def test_a_profile_function_of_the_threads_own_stays(calls):
    with Waiting(sys.getprofile, profiling=ignore) as thread:
        with WAY.before_next_step({thread.ident}, calls.note):
            assert thread.tell() is ignore
        assert thread.tell() is ignore
    assert len(calls) == 1


def test_a_trace_function_of_the_threads_own_stays(calls):
    with Waiting(sys.gettrace, tracing=ignore) as thread:
        with WAY.before_next_step({thread.ident}, calls.note) as missed:
            assert thread.tell() is ignore
        assert thread.tell() is ignore
    assert (thread.ident in missed) == (not calls) == (not HAS_MONITORING)


def test_a_wait_that_ends_in_an_error_is_a_step_too(calls):
    here, there = socket.socketpair()
    there.send(b".")  # which nobody has read when the other end goes
    found = []

    def receive():
        there.recv(1)

    def run():
        sys.settrace(None)
        begun.set()
        try:
            receive()
        except ConnectionResetError:
            found.extend(calls)

    begun, thread = threading.Event(), threading.Thread(target=run)
    thread.start()
    begun.wait()
    with there, WAY.before_next_step({thread.ident}, calls.note):
        here.close()
        thread.join()
    assert found == calls == [thread.ident]


def test_a_thread_that_has_ended_is_no_trouble(calls):
    with Waiting(calls.copy) as thread:
        pass
    with WAY.before_next_step({thread.ident}, calls.note) as missed:
        assert missed <= {thread.ident}
    assert calls == []


def test_threads_that_come_and_go_meanwhile_are_no_trouble(calls):
    stop, started = [], 0

    def come_and_go():
        nonlocal started
        while not stop:
            _thread.start_new_thread(sum, ([],))
            started += 1

    with Waiting(calls.copy) as thread:
        starter = threading.Thread(target=come_and_go)
        starter.start()
        try:
            for times in range(1, 101):
                everyone = sys._current_frames().keys() - {get_ident()}
                with WAY.before_next_step(everyone, calls.note):
                    assert thread.tell().count(thread.ident) == times
        finally:
            stop.append(True)
            starter.join()
    assert started > 0


@pytest.mark.skipif(not HAS_MONITORING, reason="sys.monitoring came with 3.12")
@pytest.mark.parametrize("is_called", [True, False])
def test_the_id_of_the_tool_is_given_back(calls, is_called):
    def tools():
        return [sys.monitoring.get_tool(tool) for tool in range(6)]  # type: ignore[attr-defined, unused-ignore]

    before = tools()
    with Waiting(calls.copy) as thread:
        with WAY.before_next_step({thread.ident}, calls.note):
            assert tools() != before
            assert not is_called or (thread.tell() and tools() == before)
        assert tools() == before
