"""The events that are asked for, whatever Python runs the tests; test_before_next_step has what they do."""

from __future__ import annotations

import dis
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from tests.host.waiting import Calls, Waiting, frame_of, until

from asgi_mlperf.host import next_steps
from asgi_mlperf.host.next_steps import before_next_step


class FakeMonitoring:
    """Remembers what was asked of it, and calls back when told."""

    events = SimpleNamespace(INSTRUCTION=1)
    DISABLE = object()

    def __init__(self) -> None:
        self.tools, self.watched, self.callback = {}, {}, None

    def use_tool_id(self, tool, name):
        if tool in self.tools:
            raise ValueError(tool)
        self.tools[tool] = name

    def free_tool_id(self, tool):
        del self.tools[tool]

    def register_callback(self, tool, event, callback):
        self.callback = callback

    def set_local_events(self, tool, code, events):
        self.watched[code] = events
        if not events:
            del self.watched[code]


@pytest.fixture
def monitoring(monkeypatch):
    fake = FakeMonitoring()
    monkeypatch.setattr(sys, "monitoring", fake, raising=False)
    return fake


@pytest.fixture
def calls():
    return Calls()


def kept(monitoring, code):
    """Return the offsets at which events stay on."""
    offsets = range(0, len(code.co_code), 2)
    return {offset for offset in offsets if monitoring.callback(code, offset) is not monitoring.DISABLE}


def test_others_that_run_the_same_code_come_by_only_where_the_thread_goes_on(monitoring, calls):
    with Waiting(calls.copy) as thread, before_next_step({thread.ident}, calls.note) as missed:
        frame = frame_of(thread)
        assert frame.f_code in monitoring.watched
        [place] = kept(monitoring, frame.f_code)
        assert frame.f_lasti < place <= frame.f_lasti + 10
    assert missed == set()
    assert calls == []


def test_a_loop_goes_on_in_its_body_or_behind_it(monitoring, calls):
    orders = SimpleQueue()

    def run():
        for _ in iter(orders.get, None):
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: opcode(frame_of(thread)) == "FOR_ITER")
    with before_next_step({thread.ident}, calls.note):
        frame = frame_of(thread)
        body, *behind = sorted(kept(monitoring, frame.f_code))
        assert frame.f_lasti < body < behind[0]
    orders.put(None)
    thread.join()


def opcode(frame):
    return next(
        (each.opname for each in dis.get_instructions(frame.f_code) if each.offset == frame.f_lasti), None
    )


def test_when_all_were_called_everything_is_given_back(monitoring, calls, monkeypatch):
    with (
        Waiting(calls.copy) as thread,
        Waiting(calls.copy) as other,
        before_next_step({thread.ident, other.ident}, calls.note),
    ):
        frame = frame_of(thread)
        for each in (thread, other):
            assert frame.f_code in monitoring.watched
            monkeypatch.setattr(next_steps, "get_ident", lambda each=each: each.ident)
            assert monitoring.callback(frame.f_code, frame.f_lasti) is None
        assert (monitoring.watched, monitoring.callback, monitoring.tools) == ({}, None, {})
    assert len(calls) == 2


def test_an_audit_hook_that_refuses_keeps_nothing_from_being_given_back(monitoring, calls, monkeypatch):
    def refuse(tool, event, callback):
        if callback is None:
            raise PermissionError("not here")

    with Waiting(calls.copy) as thread:
        with before_next_step({thread.ident}, calls.note):
            assert monitoring.tools
            monkeypatch.setattr(monitoring, "register_callback", refuse)
        assert (monitoring.watched, monitoring.tools) == ({}, {})


def test_a_wait_without_handlers_goes_on_in_the_caller_that_has_one(monitoring, calls):
    orders = SimpleQueue()

    def receive():
        orders.get()

    def run():
        with suppress(LookupError):
            receive()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: frame_of(thread).f_code is receive.__code__)
    with before_next_step({thread.ident}, calls.note):
        assert monitoring.watched == {receive.__code__: 1, run.__code__: 1}
        assert kept(monitoring, run.__code__)
    orders.put(None)
    thread.join()


def test_what_a_loop_of_c_runs_may_be_missed(monitoring, calls):
    stop, begun = SimpleQueue(), threading.Event()

    class Loop:
        run_forever = stop.get

    def run():
        begun.set()
        Loop.run_forever()

    threads = [threading.Thread(target=run, daemon=True), threading.Thread(target=stop.get, daemon=True)]
    for thread in threads:
        thread.start()
    begun.wait()
    until(lambda: frame_of(threads[0]).f_code is run.__code__)
    idents = {thread.ident for thread in threads if thread.ident}
    with before_next_step(idents, calls.note) as missed:
        assert missed == idents
    for _ in threads:
        stop.put(None)
    for thread in threads:
        thread.join()


def test_without_a_free_id_all_are_missed(monitoring, calls):
    monitoring.tools = dict.fromkeys(range(6), "another")
    with before_next_step({1, 2}, calls.note) as missed:
        assert missed == {1, 2}
    assert set(monitoring.tools.values()) == {"another"}


def test_what_fails_makes_all_missed_and_is_undone(monitoring, calls, monkeypatch, caplog):
    monkeypatch.setattr(next_steps, "_next_steps", lambda frame: 1 / 0)
    with Waiting(calls.copy) as thread, before_next_step({thread.ident}, calls.note) as missed:
        assert missed == {thread.ident}
    assert "cannot be told" in caplog.text
    assert monitoring.tools == {}
