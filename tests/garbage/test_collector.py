from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.garbage.conftest import MIB, NEVER, Bench, cycles

from asgi_mlperf.garbage.kinds import CollectorKind


def test_while_scheduled_cpython_collects_nothing_by_itself_for_long(bench: Bench):
    found = gc.get_threshold()
    with bench.scheduling():
        assert gc.get_threshold() == (1_000_000, found[1], NEVER)
        cycles(50_000)
        assert bench.passes() == []
    assert gc.get_threshold() == found


def test_garbage_of_an_idle_worker_is_collected_after_the_request(bench: Bench):
    with bench.scheduling():
        bench.request(lambda: cycles(1_000))
        assert bench.passes() == []
        bench.request(lambda: cycles(1_500))
        assert bench.passes() == [(1, "idle")]


def test_the_collection_comes_a_loop_step_after_the_end(bench: Bench):
    with bench.scheduling():
        exchange: Any = None
        closer = bench.collector.request_ended
        cycles(3_000)
        closer(exchange)
        assert bench.passes() == []
        bench.loop.step()
        assert bench.passes() == [(1, "idle")]


def test_a_tiny_request_asks_nothing_of_the_loop(bench: Bench):
    with bench.scheduling():
        bench.request()
        assert bench.loop.soon == []


def test_ends_of_many_requests_ask_for_one_look(bench: Bench):
    with bench.scheduling():
        exchange: Any = None
        cycles(3_000)
        for _ in range(5):
            bench.collector.request_ended(exchange)
        assert len(bench.loop.soon) == 1


def test_a_busy_worker_is_left_alone(bench: Bench):
    with bench.scheduling():
        bench.traffic.in_flight = 1
        bench.request(lambda: cycles(10_000))
        assert bench.passes() == []


def test_streams_that_stay_do_not_keep_a_worker_busy(bench: Bench):
    with bench.scheduling():
        bench.traffic.in_flight = 2
        for _ in range(2):
            bench.now += 1
            bench.collector.look_around()
        bench.request(lambda: cycles(3_000))
        assert bench.passes() == [(0, "request")]


def test_memory_is_looked_at_between_requests_too(bench: Bench):
    with bench.scheduling():
        bench.traffic.in_flight = 1
        bench.rss += 33 * MIB
        for _ in range(16):
            bench.request()
        assert bench.passes() == [(0, "request")]


def test_tight_memory_is_looked_at_more_often(bench: Bench):
    bench.limit = 400 * MIB
    with bench.scheduling() as collector:
        collector.look_around()
        bench.traffic.in_flight = 1
        bench.rss += 33 * MIB
        for _ in range(2):
            bench.request()
        assert bench.passes() == [(0, "request")]


def test_the_thread_asks_for_a_collection_when_no_request_ends(bench: Bench):
    with bench.scheduling() as collector:
        cycles(3_000)
        collector.look_around()
        bench.loop.step()
        assert bench.passes() == [(1, "idle")]


def test_a_closed_loop_is_asked_for_nothing(bench: Bench):
    with bench.scheduling() as collector:
        bench.loop.closed = True
        cycles(3_000)
        collector.look_around()
        assert bench.passes() == []


def test_nothing_is_collected_after_the_end(bench: Bench):
    with bench.scheduling() as collector:
        cycles(3_000)
        collector.look_around()
    list(bench.pauses.drain())
    bench.loop.step()
    assert bench.passes() == []
    assert bench.pauses.listeners == []


def promote(objects: int) -> list[Any]:
    kept: list[Any] = [[] for _ in range(objects)]
    gc.collect(1)
    return kept


def test_a_due_full_collection_runs_at_the_next_quiet_moment(bench: Bench):
    bench.settings = bench.settings.model_copy(update={"full_objects": 1_000})
    with bench.scheduling() as collector:
        promote(2_000)
        bench.now += 2
        collector.look_around()
        bench.loop.step()
        assert (2, "idle") in bench.passes()


def test_a_full_collection_waits_for_its_turn_on_the_host(bench: Bench):
    bench.settings = bench.settings.model_copy(update={"full_objects": 1_000})
    bench.mine = False
    with bench.scheduling() as collector:
        promote(2_000)
        bench.now += 2
        for _ in range(2):
            collector.look_around()
            bench.loop.step()
            bench.now += 1
        assert (2, "idle") not in bench.passes()
        assert bench.pauses.state.deferred_s == pytest.approx(3)
        bench.mine = True
        collector.look_around()
        bench.loop.step()
        assert (2, "idle") in bench.passes()


def test_what_is_loaded_late_is_frozen_at_sustained_idle(bench: Bench):
    with bench.scheduling() as collector:
        freezes = bench.freezer.times
        kept = promote(200_000)
        bench.now += 10
        bench.tick = 0.01
        collector.look_around()
        bench.loop.step()
        assert bench.freezer.times == freezes + 1
        assert gc.get_freeze_count() > 200_000
        assert bench.freezer.objects > 200_000
    assert kept


def blocked(bench: Bench) -> list[int]:
    """What CPython collects by itself while the loop never comes back, and memory grows."""
    bench.rss += 600 * MIB
    bench.collector.look_around()
    cycles(40_000)
    return [generation for generation, _ in bench.passes()]


def test_memory_that_grows_while_the_loop_is_blocked_rearms_cpythons_own_collections(bench: Bench):
    with bench.scheduling():
        assert 0 in blocked(bench)
        assert bench.pauses.state.valve_openings == {"memory": 1, "overdue": 0}


def test_the_valve_is_more_eager_than_what_was_found(bench: Bench):
    young, middle, old = gc.get_threshold()
    with bench.scheduling() as collector:
        bench.rss += 600 * MIB
        collector.look_around()
        assert gc.get_threshold() == (young // 2, middle, old)


def test_a_full_collection_takes_the_valve_back(bench: Bench):
    with bench.scheduling() as collector:
        bench.rss += 600 * MIB
        collector.look_around()
        gc.collect()
        assert gc.get_threshold()[2] == NEVER


def test_memory_that_came_back_takes_the_valve_back(bench: Bench):
    with bench.scheduling() as collector:
        bench.rss += 600 * MIB
        collector.look_around()
        bench.rss -= 500 * MIB
        collector.look_around()
        assert gc.get_threshold()[2] == NEVER


def test_the_valve_opens_without_the_thread_when_collections_are_long_overdue(bench: Bench):
    bench.settings = bench.settings.model_copy(update={"full_objects": 1_000})
    with bench.scheduling() as collector:
        bench.mine = False
        promote(2_000)
        bench.now += 2
        collector.look_around()
        bench.now += 1_000
        gc.collect(0)
        assert bench.pauses.state.valve_openings == {"memory": 0, "overdue": 1}
        assert gc.get_threshold()[2] != NEVER


def test_a_heap_that_something_else_unfroze_is_frozen_again_and_that_is_told(bench: Bench, caplog):
    bench.settings = bench.settings.model_copy(update={"full_objects": 1_000})
    with bench.scheduling() as collector:
        promote(2_000)
        gc.unfreeze()
        bench.now += 2
        bench.tick = 0.01
        collector.look_around()
        bench.loop.step()
        assert gc.get_freeze_count() > 10_000
    assert caplog.text.count("gc.unfreeze()") == 1


def test_frozen_objects_are_given_back_when_memory_is_short_and_frozen_again_when_it_is_not(bench: Bench):
    bench.limit = 400 * MIB
    with bench.scheduling() as collector:
        bench.rss = 345 * MIB
        collector.look_around()
        assert gc.get_freeze_count() == 0
        assert bench.pauses.state.frozen_objects == 0
        bench.now += 10
        bench.tick = 0.001
        collector.look_around()
        bench.loop.step()
        collector.look_around()
        assert gc.get_freeze_count() > 10_000
        assert bench.pauses.state.frozen_objects > 0


def test_without_generations_no_young_collection_runs(bench: Bench):
    bench.kind = CollectorKind.WHOLE_HEAP
    with bench.scheduling() as collector:
        bench.request(lambda: cycles(50_000))
        collector.look_around()
        bench.loop.step()
        assert bench.passes() == []


def test_a_failing_look_gives_everything_back_to_cpython(bench: Bench):
    found = gc.get_threshold()
    with bench.scheduling() as collector:
        collector._give_up()
        assert gc.get_threshold() == found
        gc.collect(0)
        assert gc.get_threshold() == found


def test_finalizers_run_on_the_loops_thread_and_may_raise(bench: Bench, recwarn):
    import threading

    threads: list[int] = []

    class Rude:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            threads.append(threading.get_ident())

    with bench.scheduling():
        gone: list[weakref.ref[Any]] = []
        heard: list[Any] = []

        def work() -> None:
            rude = Rude()
            gone.append(weakref.ref(rude, heard.append))
            cycles(3_000)

        bench.request(work)
        assert threads == [threading.get_ident()]
        assert heard == gone


def test_a_collection_inside_a_lock_of_the_listener_does_not_wait_for_it(bench: Bench):
    from threading import Lock

    with bench.scheduling(), Lock():
        gc.collect(0)
        assert bench.passes() == [(0, "idle")]


def test_what_something_else_changes_is_put_right_at_the_next_look(bench: Bench, caplog):
    with bench.scheduling() as collector, caplog.at_level(logging.WARNING):
        expected = gc.get_threshold()
        gc.set_threshold(50)
        callback = gc.callbacks.pop()
        collector.look_around()
        assert gc.get_threshold() == expected
        assert gc.callbacks[-1] == callback
    assert "gc.set_threshold()" in caplog.text


def test_every_exit_restores(bench: Bench):
    found = gc.get_threshold(), list(gc.callbacks), gc.get_freeze_count()

    def fail() -> None:
        with bench.scheduling():
            raise RuntimeError("the body failed")

    failing: Callable[[], None] = fail
    with pytest.raises(RuntimeError, match="the body failed"):
        failing()
    assert (gc.get_threshold(), list(gc.callbacks), gc.get_freeze_count()) == found


def rests(bench: Bench) -> bool:
    bench.now += 0.5
    bench.collector.look_around()
    return bench.traffic.wake is not None


def test_a_worker_rests_once_nothing_has_happened_for_a_second(bench: Bench):
    with bench.scheduling():
        bench.request()
        assert [rests(bench) for _ in range(4)] == [False, False, True, True]


@pytest.fixture
def resting(bench: Bench) -> Iterator[Bench]:
    with bench.scheduling():
        bench.now += 1
        bench.collector.look_around()
        assert rests(bench)
        yield bench


def test_the_next_request_ends_the_rest_once(resting: Bench):
    stirred = []
    resting.traffic.wake = lambda: stirred.append(1)
    for _ in range(2):
        resting.traffic.stir()
    assert stirred == [1]
    resting.request()
    assert not rests(resting)


def test_a_request_that_stays_allows_no_rest(resting: Bench):
    resting.traffic.stir()
    resting.traffic.in_flight = 1
    resting.now += 2
    assert not rests(resting)


def test_a_job_that_makes_objects_without_requests_allows_no_rest(resting: Bench):
    kept: list[Any] = [[] for _ in range(500)]
    assert not rests(resting)
    assert rests(resting)
    del kept


def test_memory_that_grows_without_requests_ends_the_rest_at_once(resting: Bench):
    resting.collector.look_around()
    assert resting.traffic.wake is not None
    resting.rss += 2 * MIB
    resting.collector.look_around()
    assert resting.traffic.wake is None


def test_a_due_collection_allows_no_rest(resting: Bench):
    kept: list[Any] = [[] for _ in range(3_000)]
    assert not rests(resting)
    assert not rests(resting)
    del kept


def test_nobody_is_woken_after_the_end(bench: Bench):
    with bench.scheduling():
        for _ in range(3):
            bench.now += 1
            bench.collector.look_around()
        assert bench.traffic.wake is not None
    assert bench.traffic.wake is None
