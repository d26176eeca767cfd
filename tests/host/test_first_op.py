from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.host.native import OPS as NATIVE
from tests.host.native import find
from tests.host.processes import outputs

PROGRAM = Path(__file__).with_name("first_op.py")
OF_TORCH = ("mm", "conv", "linear", "tanh", "softmax")
OPS = (*OF_TORCH, "numpy", "scipy", "sklearn")
SOME = ("mm", "conv", "numpy")

pytestmark = [
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU no op starts a thread anyway"),
    pytest.mark.timeout(150),
]


def started(where: str, *ops: str, **environ: str) -> dict[str, str]:
    """Return how many threads each op started as the first of its process, the budget being one CPU."""
    of_torch = OF_TORCH if set(OF_TORCH) <= set(ops) else ()
    each = [(op,) for op in ops if op not in of_torch]
    commands = {ops: [str(PROGRAM), where, *ops] for ops in [*each, of_torch] if ops}
    written = outputs(commands, **environ).values()
    return dict(line.split() for output, _ in written for line in output.splitlines())


@pytest.mark.parametrize("where", ["run", "def", "async", "to_thread"])
def test_the_first_op_of_a_process_starts_no_thread(where):
    assert started(where, *OPS) == dict.fromkeys(OPS, "0")


@pytest.mark.parametrize("where", ["executor", "old_thread", "lazy"])
def test_nor_does_it_in_an_executor_in_a_thread_from_before_or_after_a_late_import(where):
    assert started(where, *SOME) == dict.fromkeys(SOME, "0")


@pytest.mark.parametrize("library", NATIVE)
def test_whichever_library_it_is(library):
    path = find(library)
    if path is None:
        pytest.skip(f"{library} is not on this machine, nor in LD_LIBRARY_PATH")
    of_library = {"NATIVE_LIBRARY": path, "BLIS_NUM_THREADS": "2"}  # BLIS has one thread unless told
    for where in ("run", "def", "async", "to_thread", "old_thread"):
        assert (where, started(where, library, **of_library)[library]) == (where, "0")
    assert started("lazy", library, NATIVE_LIBRARY=path)[library] == "0"
    assert started("def", library, **of_library, ASGI_MLPERF_ENABLED="false")[library] == "1"


@pytest.mark.parametrize("where", ["def", "async"])
def test_without_the_plugin_it_does(where):
    found = started(where, *OF_TORCH, ASGI_MLPERF_ENABLED="false")
    assert found.keys() == {*OF_TORCH}
    assert "0" not in found.values()
