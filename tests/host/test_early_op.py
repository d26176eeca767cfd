"""Threads from before: their first op starts no thread, whatever they were in when the plugin started."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from tests.host.native import find
from tests.host.processes import outputs

PROGRAM = str(Path(__file__).with_name("early_op.py"))
LIBGOMP = find("libgomp")
IN_THREAD = (
    *("queue", "simple_queue", "iterator", "timeouts", "event", "sleep", "busy", "socket", "reset"),
    *("timer", "loop"),
)
KINDS = [f"thread:{wait}" for wait in IN_THREAD] + [
    f"{start}:{wait}" for start in ("raw", "executor", "pool") for wait in ("queue", "simple_queue")
]

pytestmark = [
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU no op starts a thread anyway"),
    pytest.mark.timeout(150),
]


def started(op: str, *kinds: str, **environ: str) -> dict[str, str]:
    """Return how many threads an op started in each kind of thread."""
    [(output, log)] = outputs({op: [PROGRAM, op, *kinds]}, **environ).values()
    assert "ran before" not in log
    return dict(json.loads(output))


@pytest.mark.parametrize(
    ("op", "kind"), [(op, "thread:simple_queue") for op in ("mm", "conv", "numpy")] + [("mm", "thread:queue")]
)
def test_the_first_op_of_a_process_starts_no_thread(op, kind):
    pytest.importorskip("torch")
    assert started(op, kind) == {kind: "0"}


@pytest.mark.parametrize("op", ["mm", "conv"])
def test_nor_does_that_of_a_thread_whatever_it_did(op):
    pytest.importorskip("torch")
    assert started(op, *KINDS) == dict.fromkeys(KINDS, "0")


def test_without_the_plugin_all_do():
    if LIBGOMP is None:
        pytest.skip("libgomp is not on this machine")
    assert started("libgomp", *KINDS, NATIVE_LIBRARY=LIBGOMP) == dict.fromkeys(KINDS, "0")
    without = {"NATIVE_LIBRARY": LIBGOMP, "ASGI_MLPERF_ENABLED": "false"}
    assert started("libgomp", *KINDS, **without) == dict.fromkeys(KINDS, "1")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="from 3.12 on only threads in Python are seen")
def test_nor_does_that_of_an_event_loop_in_c():
    pytest.importorskip("torch")
    assert started("mm", "thread:uvloop") == {"thread:uvloop": "0"}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="trace functions are not needed since")
def test_one_with_a_trace_function_of_its_own_may_which_the_log_says():
    pytest.importorskip("torch")
    [(output, log)] = outputs({"traced": [PROGRAM, "conv", "traced:queue"]}).values()
    assert json.loads(output) != {"traced:queue": "0"}
    assert "queue-worker (__main__.traced)" in log
