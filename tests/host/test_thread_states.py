from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.host.waiting import Calls, Waiting

from asgi_mlperf.host import thread_states

SOURCE = str(Path(__file__).parents[2] / "src")
OF_3_11 = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="what it is about is only done on 3.11")


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(thread_states, "_hook", thread_states._hook.__wrapped__)
    return Calls()


@OF_3_11
def test_a_thread_takes_its_function_out_itself_where_an_audit_hook_came_meanwhile():
    program = """if True:
        import sys, threading, queue
        from asgi_mlperf.host.thread_states import before_next_step
        answers, wakes = queue.SimpleQueue(), queue.SimpleQueue()
        def run():
            for answer in iter(wakes.get, None):
                answers.put(answer)
        def refuse(event, _):
            if event == "sys.settrace":
                raise RuntimeError("not here")
        thread = threading.Thread(target=run)
        thread.start()
        wakes.put("begun")
        answers.get()
        with before_next_step({thread.ident}, lambda: print("called")) as missed:
            print(missed == set())
            sys.addaudithook(refuse)
            for answer in ("one", "two"):
                wakes.put(answer)
                print(answers.get())
        wakes.put(None)
        thread.join()
    """
    environ = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", program]
    output = subprocess.check_output(command, env=environ, text=True, stderr=subprocess.STDOUT)
    assert output.split() == ["True", "called", "one", "two"]


@OF_3_11
def test_where_an_audit_hook_would_run_in_between_all_are_missed():
    program = """if True:
        import sys, threading, queue
        from asgi_mlperf.host.thread_states import before_next_step
        answers, wakes = queue.SimpleQueue(), queue.SimpleQueue()
        def run():
            answers.put(1)
            answers.put(wakes.get())
        sys.addaudithook(lambda *_: None)
        thread = threading.Thread(target=run)
        thread.start()
        answers.get()
        with before_next_step({thread.ident}, lambda: print("called")) as missed:
            print(missed == {thread.ident})
        wakes.put("woken")
        print(answers.get())
        thread.join()
    """
    environ = {**os.environ, "PYTHONPATH": SOURCE}
    output = subprocess.check_output([sys.executable, "-c", program], env=environ, text=True)
    assert output.split() == ["True", "woken"]


@OF_3_11
@pytest.mark.parametrize(
    ("name", "value"),
    [("get_ident", lambda: 1), ("get_native_id", lambda: 1), ("_function", lambda *_: ctypes.pythonapi.none)],
)
def test_where_a_thread_is_not_as_expected_all_are_missed(calls, monkeypatch, name, value):
    with Waiting(calls.copy) as thread:
        monkeypatch.setattr(thread_states, name, value)
        with thread_states.before_next_step({thread.ident}, calls.note) as missed:
            assert missed == {thread.ident}
            assert thread.tell() == []


def test_no_other_python_is_reached_into(calls, monkeypatch):
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    with thread_states.before_next_step({1}, calls.note) as missed:
        assert missed == {1}
