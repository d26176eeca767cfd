from __future__ import annotations

import random

import pytest

from asgi_mlperf.inference.costs import BatchCost


def learnt(*batches: tuple[float, float]) -> BatchCost:
    cost = BatchCost()
    for size, seconds in batches:
        cost.observe(size, seconds)
    return cost


def test_before_the_first_batch_nothing_is_known():
    cost = BatchCost()
    assert (cost.mean(5), cost.likely(5), cost.largest_within(1, 2)) == (0, 0, 0)


def test_a_line_is_found_again():
    chance = random.Random(0)
    sizes = [chance.randint(1, 32) for _ in range(200)]
    cost = learnt(*((size, 0.018 + 0.0001 * size) for size in sizes))
    for size in (1, 16, 32, 64):
        assert cost.mean(size) == pytest.approx(0.018 + 0.0001 * size, rel=0.01)
    assert cost.likely(16) == pytest.approx(cost.mean(16), rel=0.05)


def test_it_follows_a_change():
    cost = learnt(*((size, 0.01) for size in (1, 5) * 50), *((size, 0.02) for size in (1, 5) * 100))
    assert cost.mean(3) == pytest.approx(0.02, rel=0.02)


def test_of_one_size_alone_a_larger_batch_takes_more_in_proportion_and_a_smaller_one_as_much():
    cost = learnt(*((4, 0.004),) * 10)
    assert (cost.mean(8), cost.mean(4), cost.mean(1)) == pytest.approx((0.008, 0.004, 0.004))


def test_what_is_likely_grows_with_the_deviation():
    cost = learnt(*((4, seconds) for seconds in (0.003, 0.005) * 50))
    assert 0.005 < cost.likely(4) < 0.008


def test_an_outlier_counts_for_four_times_the_expected_at_the_most():
    cost = learnt(*((4, 0.004),) * 100, (4, 60.0))
    assert cost.mean(4) < 0.005


@pytest.mark.parametrize("slope", [0.0, 0.001])
def test_the_largest_size_within_a_time_takes_that_time(slope):
    cost = learnt(*((size, 0.002 + slope * size) for size in (1, 2, 3, 5, 8) * 20))
    size = cost.largest_within(0.005, 0)
    if slope:
        assert size == pytest.approx(3, rel=0.01)
        assert cost.largest_within(0.003, 0) == pytest.approx(1, rel=0.01)
    else:
        assert size > 1e6
        assert cost.largest_within(0.001, 0) <= 0


def test_doubt_lowers_what_is_expected():
    cost = learnt(*((size, 0.002 * size) for size in (1, 2, 3) * 20))
    for _ in range(50):
        cost.doubt()
    assert cost.mean(3) < 0.0001
