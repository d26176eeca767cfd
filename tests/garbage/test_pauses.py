from __future__ import annotations

import gc

import pytest
from tests.garbage.conftest import cycles

from asgi_mlperf.garbage.pauses import Pauses
from asgi_mlperf.hooks import Traffic

pytestmark = pytest.mark.usefixtures("quiet_gc")


def test_a_pause_tells_its_generation_cost_and_place():
    traffic, clock = Traffic(), iter([1.0, 1.5, 2.0, 2.25])
    pauses = Pauses(lambda: next(clock), traffic)
    gc.collect()
    with pauses.watching():
        cycles(100)
        gc.collect(1)
        traffic.in_flight = 1
        gc.collect(0)
    young, new = pauses.drain()
    assert (young.generation, young.seconds, young.where) == (1, 0.5, "idle")
    assert young.freed >= 100
    assert young.candidates >= 100
    assert (new.generation, new.seconds, new.where) == (0, 0.25, "request")
    assert pauses.total_seconds == 0.75
    assert list(pauses.drain()) == []


def test_it_stops_watching_even_if_somebody_cleared_the_callbacks():
    pauses = Pauses(lambda: 0.0, Traffic())
    with pauses.watching():
        gc.callbacks.clear()
    assert gc.callbacks == []


def test_it_keeps_watching_after_somebody_cleared_the_callbacks():
    pauses = Pauses(lambda: 0.0, Traffic())
    with pauses.watching():
        gc.callbacks.clear()
        pauses.keep_watching()
        pauses.keep_watching()
        gc.collect(0)
    assert len(list(pauses.drain())) == 1


def test_listeners_hear_of_each_pause_at_once():
    pauses = Pauses(lambda: 0.0, Traffic())
    heard = []
    pauses.listeners.append(heard.append)
    with pauses.watching():
        gc.collect(0)
    assert heard == list(pauses.drain())
