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
def test_an_audit_hook_that_refuses_makes_it_miss():
    program = """if True:
        import sys, threading, queue
        from asgi_mlperf.host.thread_states import before_next_step
        answers, wakes = queue.SimpleQueue(), queue.SimpleQueue()
        def run():
            answers.put(1)
            answers.put(wakes.get())
        def refuse(event, _):
            if event == "sys.settrace" and refusing:
                raise RuntimeError("not here")
        sys.addaudithook(refuse)
        for refusing in ([1], []):
            thread = threading.Thread(target=run)
            thread.start()
            answers.get()
            with before_next_step({thread.ident}, lambda: print("called")) as missed:
                print(missed == {thread.ident})
                if not refusing:
                    refusing.append(1)
            wakes.put("woken")
            print(answers.get())
            refusing.clear()
            thread.join()
    """
    environ = {**os.environ, "PYTHONPATH": SOURCE}
    output = subprocess.check_output([sys.executable, "-c", program], env=environ, text=True)
    assert output.split() == ["True", "woken", "False", "woken"]


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
