from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from asgi_mlperf.host.allocator import keep_freed, thresholds

MEBIBYTE = 1 << 20
REQUESTS = """
import ctypes, resource, sys
from asgi_mlperf.host.allocator import keep_freed

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def request():
    blocks = [libc.malloc(3 << 20) for _ in range(3)]
    for block in blocks:
        libc.memset(block, 1, 3 << 20)
    for block in blocks:
        libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed(int(sys.argv[1]), {})
for _ in range(3):
    request()
before = faults()
for _ in range(10):
    request()
print((faults() - before) // 10)
"""


@pytest.fixture
def told(monkeypatch):
    """What a C library with ``mallopt`` was told."""
    told = {}
    libc = SimpleNamespace(mallopt=lambda option, value: told.setdefault(option, value) and 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    return told


def faults_of_a_request(keep_mib):
    command = [sys.executable, "-c", REQUESTS, str(keep_mib)]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_the_memory_of_a_request_is_there_for_the_next_one():
    assert faults_of_a_request(0) > 500
    assert faults_of_a_request(64) < 50


def test_heaps_keep_what_they_are_told_and_larger_blocks_stay_apart(told):
    assert keep_freed(64, {})
    assert told == {-3: 32 * MEBIBYTE, -1: 64 * MEBIBYTE}
    assert thresholds(512)["MALLOC_MMAP_THRESHOLD_"] == str(32 * MEBIBYTE)
    assert thresholds(8) == {
        "MALLOC_MMAP_THRESHOLD_": str(4 * MEBIBYTE),
        "MALLOC_TRIM_THRESHOLD_": str(8 * MEBIBYTE),
    }


@pytest.mark.parametrize(
    "environ", [{"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0"}]
)
def test_what_the_user_says_of_it_wins(told, environ):
    assert not keep_freed(64, environ)
    assert told == {}


def test_none_leaves_the_librarys_own_rule(told):
    assert not keep_freed(0, {})
    assert told == {}


def test_elsewhere_nothing_happens(monkeypatch, told):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed(64, {})
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("looked"))
    assert not keep_freed(64, {})
