from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.host.native import OPS as NATIVE
from tests.host.native import find
from tests.host.processes import outputs

PROGRAM = Path(__file__).with_name("first_op.py")
OPS = ("mm", "conv", "linear", "tanh", "softmax", "numpy", "scipy", "sklearn")
SOME = ("mm", "conv", "numpy")

pytestmark = [
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one CPU no op starts a thread anyway"),
    pytest.mark.timeout(150),
]


def started(where: str, *ops: str, **environ: str) -> dict[str, str]:
    """Return how many threads each op started as the first of its process, the budget being one CPU."""
    commands = {op: [str(PROGRAM), where, op] for op in ops}
    return {op: output for op, (output, _) in outputs(commands, **environ).items()}


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
    assert "0" not in started(where, "mm", "conv", ASGI_MLPERF_ENABLED="false").values()
