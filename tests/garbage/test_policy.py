from __future__ import annotations

import pytest

from asgi_mlperf.garbage.heap import Generation, Heap
from asgi_mlperf.garbage.policy import Policy
from asgi_mlperf.garbage.settings import GarbageSettings

MIB = 1 << 20
SETTINGS = GarbageSettings()
START = Heap(now=1_000.0, new_objects=0, new_passes=0, in_flight=0, floor=0, rss=300 * MIB)


def policy(settings: GarbageSettings = SETTINGS, **changes: object) -> Policy:
    options = {"now": START.now, "rss": START.rss, **changes}
    return Policy(settings, **options)


def collected(
    of: Policy, generation: int, *, seconds: float = 0.001, candidates: int = 0, freed: int = 0, now: float
):
    of.collected(generation, seconds=seconds, candidates=candidates, freed=freed, now=now)


def test_an_idle_worker_collects_what_is_young_once_it_is_worth_it():
    assert policy().choose(START._replace(new_objects=1_999)) is None
    assert policy().choose(START._replace(new_objects=2_000)) is Generation.YOUNG


def test_a_busy_worker_waits_until_a_pass_takes_the_pause_it_may_take():
    busy = START._replace(in_flight=3, new_objects=79_000)
    assert policy().choose(busy) is None
    assert policy().choose(busy._replace(new_objects=81_000)) is Generation.NEW


def test_what_is_measured_moves_the_point_at_which_a_busy_worker_collects():
    slow = policy()
    for _ in range(50):
        collected(slow, 0, seconds=0.01, candidates=10_000, freed=10_000, now=START.now)
    assert slow.young_limit(quiet=False) == SETTINGS.young_objects
    assert slow.young_limit(quiet=True) == SETTINGS.young_objects


def test_streams_that_are_always_there_do_not_make_a_worker_busy():
    streams = START._replace(in_flight=3, floor=3, new_objects=2_000)
    assert policy().choose(streams) is Generation.NEW
    assert policy().choose(streams._replace(in_flight=4)) is None


def test_every_tenth_busy_pass_also_looks_at_what_survived_the_others():
    busy = START._replace(in_flight=1, floor=1, new_objects=2_000, new_passes=10)
    assert policy().choose(busy) is Generation.YOUNG


def test_what_busy_passes_left_is_looked_at_once_idle():
    left = START._replace(new_passes=1)
    assert policy().choose(left) is Generation.YOUNG
    assert policy().choose(left._replace(in_flight=1, floor=1)) is None


def test_a_pass_that_met_live_objects_makes_the_next_one_wait():
    paced = policy()
    collected(paced, 0, seconds=0.002, candidates=100_000, freed=50_000, now=START.now)
    heap = START._replace(new_objects=5_000)
    assert paced.choose(heap._replace(now=START.now + 0.09)) is None
    assert paced.choose(heap._replace(now=START.now + 0.11)) is Generation.YOUNG


def test_a_pass_that_freed_everything_costs_the_budget_nothing():
    paced = policy()
    collected(paced, 1, seconds=0.5, candidates=100_000, freed=100_000, now=START.now)
    assert paced.choose(START._replace(new_objects=2_000)) is Generation.YOUNG


def test_growing_memory_is_worth_a_young_collection_whatever_the_traffic_and_the_budget():
    paced = policy()
    collected(paced, 0, seconds=1.0, candidates=1_000, freed=0, now=START.now)
    paced.saw_memory(START)
    grown = START._replace(in_flight=9, new_objects=40, rss=START.rss + 32 * MIB)
    assert paced.choose(grown._replace(rss=grown.rss - 1)) is None
    assert paced.choose(grown) is Generation.NEW


def test_little_free_memory_makes_less_growth_worth_it():
    tight = START._replace(in_flight=9, limit=START.rss + 40 * MIB)
    assert policy().choose(tight._replace(rss=START.rss + 10 * MIB)) is Generation.NEW
    assert policy().choose(tight._replace(rss=START.rss + 10 * MIB, limit=0)) is None


def survived(objects: int, **changes: object) -> Policy:
    made = policy(**changes)
    collected(made, 1, seconds=objects * 25e-9, candidates=objects, freed=0, now=START.now)
    made.saw_memory(START)
    return made


def test_enough_survivors_make_a_full_collection_due():
    later = START._replace(now=START.now + 1)
    assert survived(99_000).choose(later) is None
    assert survived(100_000).choose(later._replace(quiet_s=0.1)) is Generation.FULL


def test_a_long_full_collection_waits_for_a_quiet_moment():
    later = START._replace(now=START.now + 1)
    long = survived(200_000)
    assert long.choose(later) is None
    assert long.choose(later._replace(quiet_s=0.1, in_flight=1)) is None
    assert long.choose(later._replace(quiet_s=0.1)) is Generation.FULL


def test_a_short_full_collection_needs_only_the_fewest_requests():
    due = START._replace(now=START.now + 61, in_flight=2, floor=1)
    assert survived(50_000).choose(due) is None
    assert survived(50_000).choose(due._replace(in_flight=1)) is Generation.FULL


def test_a_full_collection_is_deferred_only_so_long():
    long = survived(200_000)
    due = START._replace(now=START.now + 1)
    assert long.choose(due) is None
    assert long.deferred_s(due.now + 5) == 5
    assert long.choose(due._replace(now=due.now + 119)) is None
    assert long.choose(due._replace(now=due.now + 121)) is Generation.FULL


def test_survivors_of_new_passes_alone_make_nothing_due():
    made = policy()
    collected(made, 0, candidates=500_000, freed=0, now=START.now)
    assert made.choose(START._replace(now=START.now + 100, quiet_s=100)) is None


def test_full_collections_take_at_most_their_share_of_the_time_for_what_lives_on():
    made = survived(200_000)
    collected(made, 2, seconds=0.05, candidates=0, freed=1_000_000, now=START.now)
    collected(made, 1, candidates=300_000, freed=0, now=START.now)
    made.saw_memory(START)
    quiet = START._replace(quiet_s=1)
    assert made.choose(quiet._replace(now=START.now + 2.4)) is None
    assert made.choose(quiet._replace(now=START.now + 2.6)) is Generation.FULL


def test_full_collections_that_free_nothing_wait_twice_as_long_each_time():
    made = policy()
    for _ in range(5):
        collected(made, 2, candidates=10, freed=0, now=START.now)
    made.saw_memory(START)
    collected(made, 1, candidates=100_000, freed=0, now=START.now)
    later = START._replace(now=START.now + 100, quiet_s=1)
    assert made.choose(later) is None
    collected(made, 1, candidates=700_000, freed=0, now=START.now)
    assert made.choose(later) is Generation.FULL


def test_fast_growth_of_memory_does_not_wait_for_a_quiet_moment():
    grown = START._replace(now=START.now + 1, in_flight=5, rss=START.rss + 128 * MIB)
    assert policy().choose(grown) is Generation.FULL


def test_fast_growth_of_memory_comes_before_the_budget():
    made = policy()
    collected(made, 2, seconds=0.05, candidates=0, freed=0, now=START.now)
    collected(made, 2, seconds=0.05, candidates=2_000_000, freed=1_900_000, now=START.now)
    made.saw_memory(START)
    assert made.choose(START._replace(quiet_s=1, rss=START.rss + 65 * MIB)) is not Generation.FULL
    assert made.choose(START._replace(quiet_s=1, rss=START.rss + 128 * MIB)) is Generation.FULL


def test_what_was_loaded_late_is_frozen_at_sustained_idle():
    late = survived(30_000)
    idle = START._replace(now=START.now + 6, quiet_s=5)
    assert late.choose(idle._replace(quiet_s=4)) is None
    assert late.choose(idle) is Generation.FULL
    collected(late, 2, seconds=0.001, candidates=0, freed=0, now=idle.now)
    assert late.wants_freeze(idle)
    late.froze()
    assert late.choose(idle._replace(now=idle.now + 1_000, quiet_s=1_000)) is None


def test_nothing_is_frozen_for_being_idle_while_a_request_is_in_flight_however_long_it_takes():
    late = survived(30_000)
    waiting = START._replace(now=START.now + 30, quiet_s=30, in_flight=1, floor=1)
    assert late.choose(waiting) is None
    collected(late, 2, seconds=0.001, candidates=0, freed=0, now=waiting.now)
    assert not late.wants_freeze(waiting)


def test_a_live_set_that_is_simply_big_is_frozen_at_once_when_idle_and_with_patience_when_busy():
    big = survived(400_000)
    collected(big, 2, seconds=0.01, candidates=0, freed=0, now=START.now)
    assert big.wants_freeze(START)
    assert not big.wants_freeze(START._replace(in_flight=2))
    for _ in range(2):
        collected(big, 2, seconds=0.01, candidates=0, freed=0, now=START.now)
    assert big.wants_freeze(START._replace(in_flight=2))


def test_a_full_collection_that_freed_something_freezes_nothing():
    made = survived(400_000)
    collected(made, 2, seconds=0.01, candidates=0, freed=100_000, now=START.now)
    assert not made.wants_freeze(START)


def test_the_valve_opens_when_memory_outgrows_what_the_last_full_collection_left():
    assert policy().valve_reason(START._replace(rss=START.rss + 512 * MIB)) is None
    assert policy().valve_reason(START._replace(rss=START.rss + 513 * MIB)) == "memory"


def test_the_valve_opens_before_half_of_the_free_memory_is_gone():
    limited = START._replace(limit=500 * MIB)
    assert policy().valve_reason(limited._replace(rss=399 * MIB)) is None
    assert policy().valve_reason(limited._replace(rss=401 * MIB)) == "memory"


def test_the_valve_opens_when_nobody_chose_for_long():
    late = survived(200_000)
    busy = START._replace(in_flight=3)
    assert late.valve_reason(busy._replace(now=START.now + 1)) is None
    assert late.valve_reason(busy._replace(now=START.now + 240)) is None
    assert late.valve_reason(busy._replace(now=START.now + 242)) == "overdue"
    assert not late.valve_can_close(busy._replace(now=START.now + 242))


def test_the_valve_can_close_once_memory_is_back():
    made = policy()
    assert not made.valve_can_close(START._replace(rss=START.rss + 300 * MIB))
    assert made.valve_can_close(START._replace(rss=START.rss + 200 * MIB))


def test_growth_counts_from_the_lowest_since_the_last_full_collection():
    made = policy()
    made.saw_memory(START._replace(rss=100 * MIB))
    assert made.valve_reason(START._replace(rss=613 * MIB)) == "memory"


def test_frozen_objects_are_collected_too_when_memory_is_short_and_once_only():
    short = START._replace(rss=860 * MIB, limit=1_000 * MIB)
    made = policy()
    assert not made.needs_thaw(short._replace(rss=840 * MIB))
    assert made.needs_thaw(short)
    made.thawed(400_000)
    assert not made.needs_thaw(short)
    quiet = short._replace(now=START.now + 2, quiet_s=1)
    assert made.choose(quiet) is Generation.FULL
    collected(made, 2, seconds=0.05, candidates=0, freed=10, now=quiet.now)
    assert made.wants_freeze(quiet)
    assert not made.wants_freeze(quiet._replace(in_flight=3))
    made.froze()
    made.saw_memory(short)
    assert not made.needs_thaw(short._replace(rss=920 * MIB))
    assert made.needs_thaw(short._replace(rss=940 * MIB))


def test_without_a_limit_nothing_is_thawed():
    assert not policy().needs_thaw(START._replace(rss=1 << 50))


@pytest.mark.parametrize(
    ("free_mib", "expected"),
    [(100_000, 1_000_000), (512, 1 << 18), (256, 1 << 16), (32, 1 << 10), (2, 700), (0, 700)],
)
def test_the_backstop_is_nearer_where_memory_is_short_but_never_nearer_than_stock(free_mib, expected):
    heap = START._replace(limit=START.rss + free_mib * MIB)
    assert policy().backstop(heap, automatic=700) == expected
    assert policy().backstop(START, automatic=700) == 1_000_000


@pytest.mark.parametrize(("free_mib", "expected_ms"), [(100_000, 50), (256, 15.625), (32, 2), (0, 2)])
def test_memory_is_looked_at_more_often_where_it_is_short(free_mib, expected_ms):
    heap = START._replace(limit=START.rss + free_mib * MIB)
    assert 1000 * policy().next_look_s(heap) == pytest.approx(expected_ms)
    assert 1000 * policy().next_look_s(START) == 50


@pytest.mark.parametrize(("free_mib", "expected_ms"), [(100_000, 500), (4_096, 250), (256, 15.625)])
def test_at_rest_memory_is_looked_at_less_often_but_before_it_can_fill(free_mib, expected_ms):
    heap = START._replace(limit=START.rss + free_mib * MIB)
    assert 1000 * policy().next_look_s(heap, rests=True) == pytest.approx(expected_ms)
    assert policy().next_look_s(START, rests=True) == 0.5


def test_without_generations_only_full_collections_are_chosen():
    made = policy(has_generations=False)
    assert made.choose(START._replace(new_objects=50_000, quiet_s=1)) is None
    assert made.choose(START._replace(new_objects=100_000, quiet_s=1)) is Generation.FULL


def test_without_generations_every_collection_counts_as_full():
    made = policy(has_generations=False)
    assert made.choose(START._replace(new_objects=100_000, in_flight=1)) is None
    assert made.deferred_s(START.now + 3) == 3
    collected(made, 0, candidates=100_000, freed=90_000, now=START.now + 3)
    assert made.deferred_s(START.now + 4) == 0
    assert made.old_objects > 0


def test_a_heap_that_could_not_be_frozen_makes_full_collections_long_from_the_start():
    made = policy(old=1_000_000)
    collected(made, 1, candidates=300_000, freed=0, now=START.now)
    due = START._replace(now=START.now + 1)
    assert made.choose(due) is None
    assert made.choose(due._replace(quiet_s=0.1)) is Generation.FULL
