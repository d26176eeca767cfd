from __future__ import annotations

import os
import subprocess
import sys

import pytest

from asgi_mlperf.cli import doctor
from asgi_mlperf.host.cpu import CPUBudget, cpu_budget, cpu_quota
from asgi_mlperf.host.memory import memory_limit
from asgi_mlperf.host.topology import physical_cores
from asgi_mlperf.settings import Settings


def budget(root, mask=range(8), *, cpus=None, workers=1) -> CPUBudget:
    return cpu_budget(cpus=cpus, workers=workers, environ={}, root=root, mask=list(mask))


@pytest.mark.parametrize(
    ("name", "quota", "memory"),
    [
        ("docker_v2", 1.5, 512 << 20),
        ("docker_v1", 2.5, 1 << 30),
        ("kubernetes_v2", 3.0, None),
        ("kubernetes_v1", 2.0, 2 << 30),
        ("systemd_nested", 1.5, 4 << 30),
        ("hybrid", None, None),
        ("no_cgroup", None, None),
    ],
)
def test_the_tightest_limit_of_all_ancestors_counts(tree, name, quota, memory):
    root = tree(name)
    assert cpu_quota(root) == quota
    assert memory_limit(root) == memory


@pytest.mark.parametrize("text", ["max 100000", "0 100000", "100000 0", "garbage", "", "100000"])
def test_what_is_no_quota_is_no_limit(tree, text):
    assert cpu_quota(tree("docker_v2", **{"sys__fs__cgroup__cpu.max": text})) is None


def test_a_group_outside_of_what_is_mounted_leaves_the_top_of_the_mount(tree):
    root = tree("docker_v1", proc__self__cgroup="11:cpu,cpuacct:/elsewhere\n")
    assert cpu_quota(root) == 2.5


def test_the_affinity_mask_limits_below_the_quota_and_the_quota_below_the_mask(tree):
    root = tree("docker_v1")
    assert (budget(root).cpus, budget(root).source) == (2.5, "cgroup quota")
    assert (budget(root, range(2)).cpus, budget(root, range(2)).source) == (2, "affinity")


@pytest.mark.parametrize(("workers", "each"), [(1, 2), (2, 1), (4, 1)])
def test_the_budget_is_divided_by_the_workers_floored_and_at_least_one(tree, workers, each):
    assert budget(tree("docker_v1"), workers=workers).per_worker == each


def test_explicit_cpus_win_over_detection_which_is_still_told(tree):
    found = budget(tree("docker_v2"), cpus=4)
    assert (found.cpus, found.source, found.detected) == (4, "setting", 1.5)


def test_siblings_are_one_core(tree):
    root = tree("smt")
    assert physical_cores(range(8), root) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert physical_cores([1, 2, 5], root) == [[1, 5], [2]]
    assert physical_cores([3, 9], root) == [[3], [9]]


def test_an_op_is_as_wide_as_there_are_cores_not_siblings(tree):
    root = tree("smt")
    assert (budget(root).per_worker, budget(root).cores_per_worker) == (8, 4)
    assert budget(root, workers=2).cores_per_worker == 2
    assert budget(root, cpus=3).cores_per_worker == 3
    assert budget(root, workers=16).cores_per_worker == 1


@pytest.mark.parametrize(
    ("name", "mask", "pinnable"), [("smt", 8, True), ("docker_v2", 8, False), ("docker_v1", 2, True)]
)
def test_cpus_can_be_pinned_only_where_no_quota_is_tighter_than_the_mask(tree, name, mask, pinnable):
    assert budget(tree(name), range(mask)).pinnable is pinnable


def test_without_an_affinity_mask_all_cpus_count(monkeypatch, tree):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    found = cpu_budget(cpus=None, workers=1, environ={}, root=tree())
    assert (found.cpus, found.cores) == (6, 6)


def test_where_nothing_can_be_read_nothing_fails(tmp_path):
    found = cpu_budget(cpus=None, workers=None, environ={}, root=tmp_path, mask=[0, 1])
    assert (found.cpus, found.source, found.workers, found.workers_known) == (2, "affinity", 1, False)


def test_doctor_tells_the_budget_under_a_captured_quota(tree):
    root = tree("systemd_nested", proc__self__cmdline="asgi-mlperf\0doctor\0")
    report = doctor.examine(Settings(workers=1), root)
    assert report["cpu"]["CPUs of this worker"] == 1
    if len(os.sched_getaffinity(0)) > 1:
        assert report["cpu"]["CPUs for all workers"] == "1.5 (cgroup quota)"
    assert report["memory"]["limit"] == "4096 MiB (cgroup)"


def test_doctor_tells_the_budget_under_a_mask():
    cpu = min(os.sched_getaffinity(0))
    ran = subprocess.run(
        ["taskset", "-c", str(cpu), sys.executable, "-m", "asgi_mlperf", "doctor"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 (affinity)" in ran.stdout
