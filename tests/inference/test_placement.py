from __future__ import annotations

import math
import statistics
import threading
import time

import pytest

from asgi_mlperf.inference.placement import (
    AutoPlacement,
    FixedPlacement,
    Meter,
    cpu_clock_of_this_thread,
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def meter(wall_s: float, *, cpu_s: float | None = None, waited: bool = False, overlap: float = 0.0) -> Meter:
    made = Meter()
    made.wall_s, made.cpu_s, made.waited = wall_s, wall_s if cpu_s is None else cpu_s, waited
    made.beside_s = overlap * wall_s
    return made


def placement_after(*threads: tuple[float, Meter], clock=None, spare_cpus=0) -> AutoPlacement:
    placement = AutoPlacement(0.002, clock=clock or Clock(), spare_cpus=spare_cpus)
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


def test_an_item_of_more_than_a_millisecond_goes_to_a_thread_whatever_the_budget():
    def placed(seconds: float) -> AutoPlacement:
        placement = AutoPlacement(0.1, clock=Clock())
        for _ in range(10):
            placement.observe(8, meter(8 * seconds), inline=False)
        return placement

    assert placed(0.0009).room(1, 8) >= 8
    assert placed(0.0011).room(1, 8) == 0
    assert placed(0.0009).room(2, 8) == 0  # its first item costs 2


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


BESIDE = [(size, meter(0.0001 + 0.00002 * size, overlap=0.8)) for size in (1, 2, 4, 8, 16)] * 10
ALONE = [(size, meter(0.0001 + 0.00002 * size, overlap=0.1)) for size in (1, 2, 4, 8, 16)] * 10


def test_a_full_batch_uses_a_spare_cpu_while_the_event_loop_works_beside_it():
    placement = placement_after(*BESIDE, spare_cpus=1)
    assert placement.room(1, 16) >= 16
    assert placement.room(1, 16, is_full=True) == 0


@pytest.mark.parametrize(("batches", "spare_cpus"), [(BESIDE, 0), (ALONE, 1)])
def test_a_full_batch_runs_inline_without_a_spare_cpu_or_where_it_keeps_the_loop_waiting(batches, spare_cpus):
    assert placement_after(*batches, spare_cpus=spare_cpus).room(1, 16, is_full=True) >= 16


def test_a_batch_beyond_the_budget_is_rather_run_whole_on_a_spare_cpu():
    batches = [(size, meter(0.0001 * size, overlap=0.8)) for size in (1, 8, 16, 32)] * 10
    assert placement_after(*batches).room(1, 32) > 10
    assert placement_after(*batches, spare_cpus=1).room(1, 32) == 0


def test_the_spare_cpu_is_tried_again_after_many_batches_inline():
    placement = placement_after(*ALONE, spare_cpus=1)
    tries = 0
    while placement.room(1, 16, is_full=True):
        placement.observe(16, meter(0.0004), inline=True)
        tries += 1
    assert 20 < tries < 200


def busy_loop(batches, *, loop_s: float, spare_cpus: int) -> AutoPlacement:
    """A placement after ``batches``, before each of which the loop used ``loop_s`` for each unit of it."""
    loop_cpu = Clock()
    placement = AutoPlacement(0.002, clock=Clock(), spare_cpus=spare_cpus, loop_cpu=loop_cpu)
    for size, measured in batches:
        loop_cpu.now += loop_s * size
        placement.meter(size)
        placement.observe(size, measured, inline=False)
    return placement


@pytest.mark.parametrize("spare_cpus", [0, 1])
def test_batches_that_seem_to_cost_nothing_may_all_run_at_once(spare_cpus):
    free = [(0, each) for _, each in BESIDE]
    assert busy_loop(free, loop_s=0.0001, spare_cpus=spare_cpus).most_on_threads == math.inf


def test_so_may_batches_of_a_function_that_sleeps_now_and_then():
    batches = 7 * [*BESIDE[:7], (BESIDE[0][0], meter(0.1, cpu_s=0.0001, waited=True))]
    assert busy_loop(batches, loop_s=0.0001, spare_cpus=1).most_on_threads == math.inf


def test_no_more_batches_run_on_threads_at_once_than_keep_up_with_the_loop():
    assert busy_loop(BESIDE, loop_s=0.0001, spare_cpus=1).most_on_threads == 1
    assert busy_loop(BESIDE, loop_s=0.0001, spare_cpus=3).most_on_threads == 3


def test_a_function_that_is_slower_than_the_loop_has_every_slot():
    assert busy_loop(BESIDE, loop_s=0.00001, spare_cpus=1).most_on_threads == math.inf
    assert busy_loop([], loop_s=0.0001, spare_cpus=1).most_on_threads == math.inf
    assert busy_loop(BESIDE, loop_s=0.0001, spare_cpus=0).most_on_threads == math.inf


def test_what_batches_take_inline_is_not_the_loops_own_work():
    loop_cpu = Clock()
    placement = AutoPlacement(0.002, clock=Clock(), spare_cpus=1, loop_cpu=loop_cpu)
    for size, measured in BESIDE:
        placement.meter(size)
        loop_cpu.now += measured.cpu_s
        placement.observe(size, measured, inline=True)
    assert placement.most_on_threads == math.inf


def test_items_that_cost_nothing_are_no_measure_of_the_loop():
    assert busy_loop([*BESIDE, (0, meter(0.001))], loop_s=0.0001, spare_cpus=1).most_on_threads == 1


@pytest.mark.parametrize(("inline", "room"), [(True, math.inf), (False, 0.0)])
def test_a_fixed_choice_never_changes(inline, room):
    placement = FixedPlacement(inline=inline)
    placement.observe(1, meter(100.0), inline=True)
    assert placement.room(1, 1_000) == room
    assert placement.most_on_threads == math.inf


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


def test_the_meter_sees_from_a_thread_what_the_loops_thread_computes_meanwhile():
    measured = Meter(cpu_clock_of_this_thread())
    begun, over = threading.Event(), threading.Event()

    def run():
        measured.start()
        begun.set()
        over.wait(30)
        measured.stop()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait(30)
    before = time.thread_time()
    sum(range(1_000_000))
    computed_s = time.thread_time() - before
    over.set()
    thread.join()
    assert measured.beside_s >= computed_s > measured.cpu_s
