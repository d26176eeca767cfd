"""In processes of their own: what becomes of glibc's heaps there is for good."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from asgi_mlperf.cli.run import find_allocator
from asgi_mlperf.host.environment import heap_variables
from asgi_mlperf.host.heaps import Heaps, _count, _glibc, freed_memory_kept, heaps, in_the_way

MIB = 1 << 20
needs_glibc = pytest.mark.skipif(_glibc() is None, reason="glibc's heaps")

SERVED = """
import asyncio, json, resource, sys, threading
import numpy
from starlette.applications import Starlette
from asgi_mlperf import Plugin, Settings
from asgi_mlperf.host import heaps

def model():
    layers = [numpy.full(MIB // 2, 1, numpy.float32) for _ in range(3)]  # 2 MiB each

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def heaps_of_threads():
    begin = threading.Barrier(13)
    threads = [threading.Thread(target=begin.wait) for _ in range(12)]
    for thread in threads:
        thread.start()
    begin.wait()
    for thread in threads:
        thread.join()
    return heaps._count(heaps._glibc())

async def main():
    settings = Settings(threads={"cpus": 2, "self_check": False, **json.loads(sys.argv[1])})
    plugin = Plugin(settings)
    async with plugin.lifespan(Starlette()):
        for _ in range(40):
            await plugin.run(model)
        before = faults()
        for _ in range(20):
            await plugin.run(model)
        print(json.dumps([(faults() - before) / 20, heaps_of_threads()]))

MIB = 1 << 20
asyncio.run(main())
"""

THREADS = """
import os, threading
from contextlib import ExitStack
from asgi_mlperf.host.heaps import Heaps, _count, _glibc, freed_memory_kept, in_the_way

def count():
    begin = threading.Barrier(13)
    threads = [threading.Thread(target=begin.wait) for _ in range(12)]
    for thread in threads:
        thread.start()
    begin.wait()
    for thread in threads:
        thread.join()
    return _count(_glibc())
"""


def in_new_process(script: str, *arguments: str, **environment: str) -> str:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    return done.stdout.strip()


def served(threads: str = "{}", **environment: str) -> tuple[float, int]:
    """Return the page faults of a model call and the heaps that twelve threads at once then have."""
    faults, count = in_new_process(SERVED, threads, **environment).strip("[]").split(",")
    return float(faults), int(count)


@needs_glibc
def test_what_a_model_frees_is_there_for_the_next_call_and_threads_share_few_heaps():
    faults, count = served()
    assert faults < 100
    assert count <= 4


@needs_glibc
@pytest.mark.parametrize(
    ("threads", "environment"),
    [
        ('{"keep_freed_memory": false}', {}),
        ('{"enabled": false}', {}),
        ("{}", {"MALLOC_TOP_PAD_": "0"}),
        ("{}", {"GLIBC_TUNABLES": "glibc.malloc.top_pad=0"}),
    ],
)
def test_heaps_are_left_alone_where_somebody_says_so(threads, environment):
    faults, count = served(threads, **environment)
    assert faults > 400
    assert count > 6


@needs_glibc
def test_afterwards_threads_have_heaps_of_their_own_again():
    script = f"""{THREADS}
before = _count(_glibc())
with freed_memory_kept(Heaps(2, 16 << 20), {{}}):
    pass
print(before, count())
"""
    before, after = map(int, in_new_process(script).split())
    assert before == 1
    assert after > 6


@needs_glibc
def test_inside_the_heaps_are_as_many_as_wanted():
    script = f"{THREADS}\nwith freed_memory_kept(Heaps(3, 16 << 20), {{}}):\n    print(count())"
    assert in_new_process(script) == "3"


@needs_glibc
def test_heaps_that_glibc_does_not_limit_any_more_are_left_alone():
    script = f"{THREADS}\ncount()\nprint(in_the_way({{}}))"
    assert in_new_process(script) == "there are 13 heaps already, which glibc does not limit any more"


@needs_glibc
def test_the_block_that_moves_the_rule_takes_no_memory():
    script = f"""{THREADS}
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
with freed_memory_kept(Heaps(2, 64 << 20), {{}}):
    print(resident() - before)
"""
    assert int(in_new_process(script)) < 2 * MIB


@pytest.mark.parametrize("name", ["jemalloc", "tcmalloc"])
def test_another_allocator_is_left_alone(name):
    library = find_allocator(name)
    if library is None:
        pytest.skip(f"{name} is not installed")
    script = (
        f"{THREADS}\nprint(in_the_way({{}}))\nwith freed_memory_kept(Heaps(2, 64 << 20), {{}}):\n    count"
    )
    assert in_new_process(script, LD_PRELOAD=str(library)) == "another allocator than glibc's"


@pytest.mark.parametrize("missing", [OSError, AttributeError])
def test_nothing_fails_without_glibc(monkeypatch, missing):
    def load(_name):
        raise missing

    monkeypatch.setattr(ctypes, "CDLL", load)
    with freed_memory_kept(Heaps(2, 64 * MIB), {}):
        assert in_the_way({}) == "another allocator than glibc's"


def test_where_heaps_cannot_be_counted_one_is_assumed():
    without_memory = cast("Any", SimpleNamespace(open_memstream=lambda *_: None))
    assert _count(without_memory) == 1


@pytest.mark.parametrize(
    ("cpus", "memory", "workers", "count", "kept"),
    [
        (1, None, 4, 2, 64),
        (4, None, 1, 4, 64),
        (64, None, 1, 8, 64),
        (2, 4096, 1, 2, 64),
        (2, 512, 1, 2, 32),
        (2, 512, 2, 2, 16),
        (1, 128, 1, 2, 16),
    ],
)
def test_heaps_follow_the_cpus_and_the_memory_of_a_worker(cpus, memory, workers, count, kept):
    assert heaps(cpus, memory and memory * MIB, workers) == Heaps(count, kept * MIB)


def test_the_launcher_says_the_same_in_variables():
    assert heap_variables(2, 64 * MIB, {}) == {
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": str(32 * MIB),
        "MALLOC_TRIM_THRESHOLD_": str(64 * MIB),
    }
    assert heap_variables(2, 64 * MIB, {"MALLOC_PERTURB_": "7"}) == {}


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "kept for the next request: 2 heaps, "),
        ({"MALLOC_ARENA_MAX": "4"}, "the allocator's own rule: as the environment says: MALLOC_ARENA_MAX"),
        ({"ASGI_MLPERF_THREADS__KEEP_FREED_MEMORY": "false"}, "the allocator's own rule, as set"),
    ],
)
@needs_glibc
def test_the_doctor_says_what_becomes_of_freed_memory(variables, told):
    script = (
        "import os; from asgi_mlperf.cli import doctor; from asgi_mlperf.host.cpu import cpu_budget; "
        "budget = cpu_budget(cpus=2, workers=1, environ=os.environ); "
        "print(doctor._freed_memory(doctor.Settings(), budget, None))"
    )
    assert in_new_process(script, **variables).startswith(told)
