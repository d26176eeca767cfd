from __future__ import annotations

import os
import sys
import threading

import pytest
from starlette.applications import Starlette

from asgi_mlperf import Plugin, Settings
from asgi_mlperf.host.niceness import giving_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own there")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def in_a_thread(func):
    """Call ``func`` in a thread that ends: not everybody may take niceness back."""
    results = []
    thread = threading.Thread(target=lambda: results.append(func()))
    thread.start()
    thread.join()
    return results[0]


def test_a_thread_that_gives_way_is_nicer_than_its_process_but_no_nicer_than_possible():
    def give(nice):
        with giving_way(nice):
            return niceness()

    own = niceness()
    assert in_a_thread(lambda: give(3)) == own + 3
    assert in_a_thread(lambda: give(19)) == 19
    assert in_a_thread(lambda: give(0)) == own
    assert niceness() == own


def test_a_thread_that_is_nicer_already_stays_as_it_is():
    def give_twice():
        with giving_way(4), giving_way(2):
            return niceness()

    assert in_a_thread(give_twice) == niceness() + 4


def test_without_the_privilege_to_take_it_back_a_thread_goes_on_as_it_is(monkeypatch):
    own, asked = niceness(), []

    def unprivileged(which, who, nice):
        asked.append((which, who, nice))
        if nice == own:
            raise PermissionError

    monkeypatch.setattr(os, "setpriority", unprivileged)
    with giving_way(2):
        pass
    assert asked == [(os.PRIO_PROCESS, 0, own + 2), (os.PRIO_PROCESS, 0, own)]


def test_where_it_is_forbidden_nothing_happens(monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    with giving_way(5):
        pass


async def test_inference_threads_give_way_to_the_event_loop():
    plugin, app, own = Plugin(Settings(pool={"nice": 3})), Starlette(), niceness()
    async with plugin.lifespan(app):
        assert await plugin.run(niceness) == own + 3
    assert niceness() == own
