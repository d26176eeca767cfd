"""What holds in every history of requests, on a heap on paper."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.garbage.worlds import World

from asgi_mlperf.garbage.settings import GarbageSettings

MIB = 1 << 20
SETTINGS = GarbageSettings()

pytestmark = pytest.mark.usefixtures("untraced")

begins = st.tuples(
    st.just("begin"),
    st.sampled_from([0, 50, 5_000, 50_000, 200_000]),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
ends = st.tuples(st.just("end"), st.integers(0, 15), st.just(0))
gaps = st.tuples(st.just("gap"), st.sampled_from([0.0, 0.0005, 0.005, 0.05, 1.0, 10.0]), st.just(0))
histories = st.lists(st.one_of(begins, ends, gaps), max_size=150)

THREE_AT_ONCE = [("begin", 200_000, 1.0)] * 3 + [("end", 0, 0)] * 3


def lived(world: World, history: list[tuple[str, float, float]]) -> World:
    for _ in range(2):
        for what, how_much, cyclic in history:
            if what == "begin":
                world.begin(int(how_much), cyclic)
                if len(world.requests) > 16:
                    world.end(0)
            elif what == "end":
                world.end(int(how_much))
            else:
                world.pass_time(how_much)
                world.decide()
    return world


@settings(max_examples=150, deadline=None)
@given(history=histories)
def test_time_spent_on_live_objects_stays_within_its_share(history):
    world = lived(World(SETTINGS), history)
    assert world.spent_on_survivors <= SETTINGS.young_share * world.now + world.longest
    assert world.spent_in_full <= SETTINGS.full_share * world.now + world.longest


@settings(max_examples=150, deadline=None)
@given(history=histories, bytes_per_object=st.sampled_from([64, 200, 1_000]))
@example(history=THREE_AT_ONCE * 6, bytes_per_object=1_000)
def test_garbage_that_waits_stays_within_its_bounds(history, bytes_per_object):
    world = lived(World(SETTINGS, bytes_per_object=bytes_per_object), history)
    assert world.most_young_garbage <= SETTINGS.backstop_objects
    # What one request makes is noticed between requests at the earliest, and no growth tells of what was
    # alive at the last full collection. What fruitless ones put off is divided out.
    request = 200_000 * bytes_per_object
    growth = max(SETTINGS.full_growth_mb * MIB, 0.1 * world.most_live_bytes)
    assert world.most_later_garbage_bytes <= 2 * growth + request


@settings(max_examples=50, deadline=None)
@given(history=histories)
def test_an_idle_worker_ends_up_with_next_to_no_garbage(history):
    world = lived(World(SETTINGS, bytes_per_object=200), history)
    while world.requests:
        world.end(0)
    for _ in range(30):
        world.pass_time(5.0)
        world.decide()
    assert world.garbage[0] < SETTINGS.young_objects
    assert sum(world.garbage) < 30_000


@settings(max_examples=50, deadline=None)
@given(history=histories)
def test_the_same_history_leads_to_the_same_decisions(history):
    assert lived(World(SETTINGS, bytes_per_object=200), history) == lived(
        World(SETTINGS, bytes_per_object=200), history
    )


@pytest.mark.parametrize("connections", [1, 4, 16, 64])
def test_saturation_keeps_garbage_few_and_passes_short(connections):
    world = World(SETTINGS, bytes_per_object=200)
    while world.now < 60:
        world.begin(5_000, 0.01)
        if len(world.requests) >= connections:
            world.end(0)
        world.pass_time(0.0002)
    assert world.most_young_garbage < 100_000
    assert world.most_old_garbage < 300_000
    assert world.longest < 0.01
