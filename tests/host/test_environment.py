from __future__ import annotations

import os

from asgi_mlperf.host.environment import COUNTS, exported, launch_variables, thread_counts


def test_counts_hold_inside_and_are_gone_outside(monkeypatch):
    for name in COUNTS:
        monkeypatch.delenv(name, raising=False)
    with exported(thread_counts(3)):
        assert {os.environ[name] for name in COUNTS} == {"3"}
    assert not set(COUNTS) & set(os.environ)


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with exported(thread_counts(3)):
        assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_what_the_app_changed_meanwhile_stays(monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with exported(thread_counts(3)):
        os.environ["MKL_NUM_THREADS"] = "5"
    assert os.environ.pop("MKL_NUM_THREADS") == "5"


def test_a_launch_sets_the_counts_and_how_threads_wait():
    variables = launch_variables(2, {})
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(variables["GOMP_SPINCOUNT"]) > 0
