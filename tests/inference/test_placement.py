from __future__ import annotations

import math
import statistics
import time

import pytest

from asgi_mlperf.inference.placement import AutoPlacement, FixedPlacement, Meter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def meter(wall_s: float, *, cpu_s: float | None = None, waited: bool = False) -> Meter:
    made = Meter()
    made.wall_s, made.cpu_s, made.waited = wall_s, wall_s if cpu_s is None else cpu_s, waited
    return made


def placement_after(*threads: tuple[float, Meter], clock=None) -> AutoPlacement:
    placement = AutoPlacement(0.002, clock=clock or Clock())
    for size, measured in threads:
        placement.observe(size, measured, inline=False)
    return placement


QUICK = [(size, meter(0.0001 + 0.00002 * size)) for size in (1, 2, 4, 8, 16)]


def test_first_calls_go_to_a_thread():
    assert placement_after().room(1, 1) == 0
    assert placement_after(*QUICK[:4]).room(1, 1) == 0


def test_a_quick_function_then_runs_inline():
    assert placement_after(*QUICK * 4).room(1, 8) >= 8


def test_the_first_call_of_all_is_not_counted():
    assert placement_after((1, meter(5.0)), *QUICK * 4).room(1, 8) >= 8


def test_a_size_is_at_most_doubled():
    assert placement_after(*QUICK * 4).room(1, 30) == 32
    assert placement_after(*((1, meter(0.00001)),) * 10).room(1, 2) == 2


def test_a_slow_function_stays_on_threads():
    assert placement_after(*((1, meter(0.01)),) * 20).room(1, 1) == 0


def test_a_function_that_mostly_waits_is_judged_by_the_clock():
    assert placement_after(*((1, meter(0.01, cpu_s=0.0001, waited=True)),) * 50).room(1, 1) == 0


def test_a_turn_of_another_thread_now_and_then_is_not_held_against_a_function():
    fair = [(size, meter(0.0001 + 0.00002 * size)) for size in (1, 2, 4, 8)] * 6
    unlucky = (4, meter(0.006, cpu_s=0.0002, waited=True))
    assert placement_after(*fair, unlucky).room(1, 8) >= 8


def test_a_function_of_uneven_times_needs_room_for_them():
    even = placement_after(*((8, meter(0.0015)),) * 50)
    uneven = placement_after(*((8, meter(seconds)) for seconds in (0.001, 0.002) * 25))
    assert even.room(1, 8) >= 8
    assert uneven.room(1, 8) < 8


def test_a_batch_is_cut_to_the_budget_where_small_ones_cost_little_more():
    placement = placement_after(*((size, meter(0.0001 * size)) for size in (1, 8, 16, 32) * 10))
    assert 10 < placement.room(1, 32) < 25


def test_a_batch_that_pays_by_its_size_is_rather_run_whole_on_a_thread():
    placement = placement_after(*((size, meter(0.0015 + 0.0001 * size)) for size in (1, 8, 16, 32) * 10))
    assert placement.room(1, 32) == 0
    assert placement.room(1, 2) >= 2


def test_an_item_dearer_than_the_budget_goes_to_a_thread():
    placement = placement_after(*((size, meter(0.0001 * size)) for size in (1, 8, 16, 32) * 10))
    assert placement.room(64, 64) == 0


def test_after_an_overrun_it_is_threads_until_the_debt_is_paid():
    clock = Clock()
    placement = placement_after(*QUICK * 20, clock=clock)
    assert placement.room(1, 8) >= 8
    placement.observe(8, meter(0.012, waited=True, cpu_s=0.0001), inline=True)
    assert placement.room(1, 8) == 0
    clock.now = 0.89
    assert placement.room(1, 8) == 0
    for quick in QUICK * 20:
        placement.observe(*quick, inline=False)
    clock.now = 0.91
    assert placement.room(1, 8) >= 8


def test_a_small_overrun_now_and_then_is_forgiven():
    clock = Clock()
    placement = placement_after(*QUICK * 20, clock=clock)
    for second in range(5):
        clock.now = second
        placement.observe(8, meter(0.0028), inline=True)
        for quick in QUICK * 20:
            placement.observe(*quick, inline=True)
        assert placement.room(1, 8) >= 8


def test_small_overruns_hold_the_loop_for_less_than_a_hundredth_of_the_time():
    clock = Clock()
    placement = placement_after(*QUICK * 20, clock=clock)
    excess_s = 0.0
    while clock.now < 10:
        if placement.room(1, 8):
            placement.observe(8, meter(0.0022), inline=True)
            excess_s += 0.0002
        for quick in QUICK * 20:
            placement.observe(*quick, inline=False)
        clock.now += 0.003
    assert 0.08 < excess_s < 0.105


def test_a_preempted_batch_is_no_overrun():
    placement = placement_after(*QUICK * 20)
    placement.observe(8, meter(0.02, cpu_s=0.0003, waited=False), inline=True)
    assert placement.room(1, 8) >= 8


@pytest.mark.parametrize(("inline", "room"), [(True, math.inf), (False, 0.0)])
def test_a_fixed_choice_never_changes(inline, room):
    placement = FixedPlacement(inline=inline)
    placement.observe(1, meter(100.0), inline=True)
    assert placement.room(1, 1_000) == room


def test_the_meter_tells_computing_from_waiting():
    computing, waiting = Meter(), Meter()
    computing.start()
    sum(range(300_000))
    computing.stop()
    waiting.start()
    time.sleep(0.01)
    waiting.stop()
    assert waiting.waited
    assert waiting.cpu_s < computing.cpu_s
    assert waiting.wall_s > 0.005


def test_the_meter_sees_runs_far_shorter_than_a_tick_of_the_scheduler():
    measured, spent = [], []
    for _ in range(21):
        made, began = Meter(), time.thread_time()
        made.start()
        sum(range(20_000))
        made.stop()
        spent.append(time.thread_time() - began)
        measured.append(made.cpu_s)
    assert statistics.median(measured) > statistics.median(spent) / 2
