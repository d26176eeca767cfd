from __future__ import annotations

import gc
import logging
from typing import Any

import pytest

from asgi_mlperf.garbage.freezer import Freezer


def test_what_is_alive_is_frozen_and_given_back():
    found = gc.get_freeze_count()
    with Freezer().frozen():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == found


def test_garbage_is_collected_first_not_frozen():
    cycle: list[Any] = []
    cycle.append(cycle)
    marker = type("Marker", (), {})()
    cycle.append(marker)
    import weakref

    gone = weakref.ref(marker)
    del cycle, marker
    with Freezer().frozen():
        assert gone() is None


def test_a_failure_inside_gives_it_back_too():
    found = gc.get_freeze_count()
    with pytest.raises(RuntimeError), Freezer().frozen():
        raise RuntimeError
    assert gc.get_freeze_count() == found


def test_a_later_freeze_takes_what_came_later():
    made = Freezer()
    with made.frozen():
        frozen = made.objects
        kept: list[Any] = [[] for _ in range(1_000)]
        assert any(one is kept for one in gc.get_objects())
        made.freeze(1_000)
        assert not any(one is kept for one in gc.get_objects())
        assert made.objects == frozen + 1_000
        assert made.times == 2
    assert kept


def test_a_heap_that_something_else_froze_is_left_as_it_is(caplog):
    gc.collect()
    gc.freeze()
    found = gc.get_freeze_count()
    try:
        made = Freezer()
        with caplog.at_level(logging.INFO), made.frozen():
            kept: list[Any] = [[] for _ in range(1_000)]
            made.freeze(1_000)
            assert made.thaw() == 0
            assert abs(gc.get_freeze_count() - found) < 500
            assert made.left_alone >= 0
            assert made.times == 0
        assert abs(gc.get_freeze_count() - found) < 500
        assert "left as it is" in caplog.text
        assert kept
    finally:
        gc.unfreeze()
        gc.collect()


def test_the_interpreters_own_frozen_objects_come_back_by_a_collection(monkeypatch):
    collections: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(1))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 375)
    with Freezer().frozen():
        before = len(collections)
    assert len(collections) == before + 1
