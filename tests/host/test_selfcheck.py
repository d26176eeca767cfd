from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from asgi_mlperf.host import selfcheck
from asgi_mlperf.host.selfcheck import Finding, check, checking, complaint
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.widths import Widths

assert np
assert torch


@pytest.fixture
def caps():
    caps = NativeThreadCaps(Widths(1, 1, 1), interop=1)
    caps.refresh()
    yield caps
    caps.restore()


def test_ops_in_a_fresh_thread_start_none_where_the_caps_hold(caps):
    finding = check(caps)
    assert finding.started == {"numpy matmul": 0, "torch matmul": 0, "torch convolution": 0}
    assert finding.counts["torch"] == 1
    assert finding.above == {}


def test_a_thread_that_an_op_starts_is_counted(caps, monkeypatch):
    def begin():
        torch.get_num_threads()
        torch.set_num_threads(2)

    monkeypatch.setattr(caps, "begin", begin)
    finding = check(caps)
    assert finding.started["torch matmul"] + finding.started["torch convolution"] >= 1
    assert finding.above["torch"] == 2
    torch.set_num_threads(1)


def test_a_thread_that_intels_openmp_names_itself_is_counted(caps, monkeypatch):
    over = threading.Event()

    def work():
        Path("/proc/self/task", str(threading.get_native_id()), "comm").write_text("openmp_worker")
        named.set()
        over.wait()

    def op():
        thread.start()
        named.wait()

    thread, named = threading.Thread(target=work), threading.Event()
    monkeypatch.setattr(selfcheck, "_ops", lambda: [("numpy matmul", op)])
    finding = check(caps)
    over.set()
    thread.join()
    assert finding.above == {"numpy": 2}


def test_what_is_above_is_named_with_the_fix():
    finding = Finding(width=1, counts={"torch": 1, "libgomp": 4}, started={"torch matmul": 1})
    assert finding.library_widths == {"torch": 2, "libgomp": 4}
    text = complaint(finding)
    for part in ("torch 2", "libgomp 4", "OMP_NUM_THREADS=1", "asgi-mlperf run"):
        assert part in text


def test_the_check_runs_beside_the_start_and_publishes_every_width(caps, caplog):
    published = {}
    with checking(caps, published.__setitem__):
        pass
    assert published["torch"] == 1
    assert caplog.text == ""


def test_caps_that_do_not_hold_are_a_warning(caps, caplog, monkeypatch):
    monkeypatch.setattr(selfcheck, "_probe", lambda caps: Finding(width=1, counts={"torch": 2}))
    with checking(caps, lambda library, count: None):
        pass
    assert "native thread caps do not hold" in caplog.text


def test_a_check_that_fails_stops_nothing(caps, caplog, monkeypatch):
    def fail(caps):
        raise LookupError

    monkeypatch.setattr(selfcheck, "_probe", fail)
    with caplog.at_level(logging.ERROR), checking(caps, lambda library, count: None):
        pass
    assert "could not be checked" in caplog.text


def test_without_proc_what_libraries_say_is_all_that_is_known(caps, monkeypatch, tmp_path):
    monkeypatch.setattr(selfcheck, "TASKS", tmp_path)
    finding = check(caps)
    assert (dict(finding.started), finding.above) == ({}, {})
    assert finding.counts["torch"] == 1
