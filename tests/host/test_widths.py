from __future__ import annotations

import pytest

from asgi_mlperf.host.widths import Widths, widths


def test_one_call_at_a_time_gets_the_whole_budget():
    allowed = widths(native=None, cpus=8, cores=8, inference_threads=8)
    assert [allowed.plan(running).thread for running in (1, 2, 3, 4, 8, 40)] == [8, 4, 2, 2, 1, 1]


def test_no_call_gets_less_than_its_share_however_many_run():
    allowed = widths(native=None, cpus=8, cores=8, inference_threads=2)
    assert [allowed.plan(running).thread for running in (1, 2, 40)] == [8, 4, 4]


def test_siblings_on_a_core_do_not_widen_an_op():
    assert widths(native=None, cpus=8, cores=4, inference_threads=1) == Widths(4, 4, 4)


def test_a_count_for_the_whole_process_is_one_while_several_run():
    allowed = widths(native=None, cpus=8, cores=8, inference_threads=4)
    assert [allowed.plan(running).process for running in (1, 2, 40)] == [8, 1, 1]


def test_an_explicit_width_is_everyones_always():
    assert {widths(native=3, cpus=8, cores=8, inference_threads=8).plan(n) for n in (1, 2, 9)} == {(3, 3)}


def test_with_more_inference_threads_than_cpus_each_has_one():
    assert widths(native=None, cpus=2, cores=2, inference_threads=8).share == 1


@pytest.mark.parametrize("allowed", [Widths(1, 1, 1), Widths(8, 1, 1), Widths(8, 4, 1), Widths(3, 3, 3)])
def test_the_table_says_what_the_rule_says_in_objects_of_its_own(allowed):
    plans = allowed.plans()
    assert [plans[min(n, len(plans) - 1)] for n in range(1, 50)] == [allowed.plan(n) for n in range(1, 50)]
    again = allowed.plans()
    assert not {id(plan) for plan in plans} & {id(plan) for plan in again}
    assert len({id(plan) for plan in plans}) == len(set(plans))
