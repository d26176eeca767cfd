from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

from asgi_mlperf.garbage.switches import Switches

NEVER = 2**31 - 1


@pytest.fixture
def switches(caplog: pytest.LogCaptureFixture) -> Iterator[Switches]:
    caplog.set_level(logging.WARNING)
    made = Switches()
    with made.restored():
        made.set(90_000, 10, NEVER)
        made.inspect(0)
        yield made


def test_thresholds_are_restored_whatever_happened():
    found = gc.get_threshold()

    def fail() -> None:
        with Switches().restored():
            gc.set_threshold(1_234)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert gc.get_threshold() == found


def test_nothing_is_told_when_nobody_else_acts(switches: Switches, caplog):
    switches.set(80_000, 10, NEVER)
    gc.collect()
    gc.freeze()
    try:
        switches.inspect(1)
        switches.inspect(1)
    finally:
        gc.unfreeze()
        gc.collect()
    assert caplog.text == ""


def test_thresholds_of_others_are_corrected_and_told_once(switches: Switches, caplog):
    for _ in range(2):
        gc.set_threshold(700, 10, 10)
        switches.inspect(0)
        assert gc.get_threshold() == (90_000, 10, NEVER)
    assert caplog.text.count("gc.set_threshold()") == 1


def test_gc_disable_and_enable_are_left_alone_and_told_once(switches: Switches, caplog):
    try:
        for _ in range(2):
            gc.disable()
            switches.inspect(0)
            assert not gc.isenabled()
            gc.enable()
            switches.inspect(0)
            assert gc.isenabled()
    finally:
        gc.enable()
    assert caplog.text.count("gc.disable()") == 1
    assert caplog.text.count("gc.enable() was") == 1


def test_a_freeze_by_something_else_is_told_once(switches: Switches, caplog):
    found = gc.get_freeze_count()
    try:
        for _ in range(2):
            gc.collect(1)
            switches.inspect(0)
            gc.freeze()
            switches.inspect(0)
    finally:
        gc.unfreeze()
        gc.collect()
    assert caplog.text.count("gc.freeze()") == 1
    assert gc.get_freeze_count() == found


def test_a_full_collection_is_not_taken_for_a_freeze(switches: Switches, caplog):
    gc.collect(1)
    switches.inspect(0)
    gc.collect()
    switches.inspect(0)
    assert caplog.text == ""


def test_a_collector_that_does_not_keep_the_third_threshold_is_not_taken_for_somebody_else(
    monkeypatch, caplog
):
    kept = [(2_000, 10, 0)]
    monkeypatch.setattr(gc, "get_threshold", lambda: kept[0])
    monkeypatch.setattr(gc, "set_threshold", lambda *wanted: kept.__setitem__(0, (*wanted[:2], 0)))
    switches = Switches()
    switches.set(90_000, 10, NEVER)
    switches.inspect(0)
    assert caplog.text == ""
