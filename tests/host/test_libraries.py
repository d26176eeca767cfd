from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asgi_mlperf.host import libraries
from asgi_mlperf.host.libraries import Library, loaded, set_interop
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.widths import Widths

assert np


def test_torch_stands_for_the_openmp_runtime_that_it_governs():
    found = {library.name: library for library in loaded()}
    assert found["torch"].per_thread
    assert not any("torch" in library.key for library in found.values() if library.name != "torch")


def test_looking_changes_nothing():
    before = torch.get_num_threads()
    list(loaded())
    assert torch.get_num_threads() == before


def test_openblas_can_be_set_from_any_thread():
    openblas = next(library for library in loaded() if "openblas" in library.name)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread, count in ((one, 1), (other, openblas.found), (one, 1), (other, openblas.found)):
            thread.submit(openblas.set, count).result()
            assert openblas.get() == count


def controller(**fields):
    known = {
        "get_num_threads": lambda: 4,
        "prefix": "libopenblas",
        "internal_api": "openblas",
        "filepath": "x",
        "user_api": "blas",
    }
    return SimpleNamespace(set_num_threads=print, **{**known, **fields})


@pytest.mark.parametrize(
    ("fields", "per_thread"),
    [
        ({"threading_layer": "pthreads"}, False),
        ({"threading_layer": "openmp"}, True),
        ({"user_api": "openmp", "internal_api": "openmp"}, True),
        ({"internal_api": "mkl", "threading_layer": "gnu"}, False),
        ({"internal_api": "blis", "threading_layer": "pthreads"}, False),
    ],
)
def test_openmp_counts_belong_to_a_thread_others_to_the_process(monkeypatch, fields, per_thread):
    fake = SimpleNamespace(lib_controllers=[controller(**fields)])
    monkeypatch.setattr(libraries, "ThreadpoolController", lambda: fake)
    monkeypatch.setattr(libraries, "_torch", lambda: None)
    (library,) = loaded()
    assert isinstance(library, Library)
    assert (library.per_thread, library.found) == (per_thread, 4)


def test_a_count_that_cannot_be_read_is_one(monkeypatch):
    fake = SimpleNamespace(lib_controllers=[controller(get_num_threads=lambda: None)])
    monkeypatch.setattr(libraries, "ThreadpoolController", lambda: fake)
    assert next(iter(loaded())).found == 1


def test_torch_half_imported_by_another_thread_is_left_for_the_next_look(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert "torch" not in {library.name for library in loaded()}


def test_inter_op_threads_that_were_used_already_are_left(monkeypatch, caplog):
    def refuse(threads):
        raise RuntimeError("cannot set number of interop threads")

    monkeypatch.setattr(torch, "set_num_interop_threads", refuse)
    with caplog.at_level(logging.DEBUG):
        set_interop(1)
    assert "inter-op" in caplog.text


def native_threads_left(op, rest):
    """Count this process's threads after an op, and once they rest, beside those of before."""

    def count():
        return len(list(Path("/proc/self/task").iterdir()))

    before = count()
    op()
    started = count() - before
    rest()
    return started, count() - before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU no op starts a thread anyway")
def test_threads_that_wait_for_the_next_op_can_be_ended_and_come_again():
    library = next(library for library in loaded() if library.name == "torch")
    matrix = torch.ones(600, 600)
    with ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            thread.submit(torch.get_num_threads).result()
            thread.submit(library.set, 2).result()
            found = thread.submit(native_threads_left, lambda: torch.tanh(matrix), library.rest).result()
            assert found == (1, 0)


@pytest.mark.parametrize(("prefix", "is_known"), [("libgomp", True), ("libomp", False), ("libiomp", False)])
def test_only_libgomps_waiting_threads_are_ended(monkeypatch, prefix, is_known):
    calls = []
    fake = controller(
        prefix=prefix,
        internal_api="openmp",
        user_api="openmp",
        dynlib=SimpleNamespace(omp_pause_resource_all=calls.append),
    )
    monkeypatch.setattr(libraries, "ThreadpoolController", lambda: SimpleNamespace(lib_controllers=[fake]))
    monkeypatch.setattr(libraries, "_torch", lambda: None)
    (library,) = loaded()
    assert (library.rest is not None) == is_known
    if library.rest:
        library.rest()
        assert calls == [1]


def test_a_threads_first_op_does_not_adopt_a_count_that_another_thread_set():
    found = torch.get_num_threads()
    caps = NativeThreadCaps(Widths(1, 1, 1), interop=1)
    caps.refresh()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(caps.begin).result()
        torch.set_num_threads(found + 1)
        thread.submit(torch.tanh, torch.ones(300, 300)).result()
        assert thread.submit(torch.get_num_threads).result() == 1
    caps.restore()
    assert torch.get_num_threads() == found
