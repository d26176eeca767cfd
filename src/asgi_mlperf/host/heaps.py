"""glibc's heaps, kept from giving back to the kernel what a request freed and the next one needs again.

glibc gives the end of a heap back once twice the largest mapped block that was ever freed is free there: a
layer's input and output, after every request. Whether that happens is a matter of a few kilobytes, and page
faults may then take longer than the model. One freed block of half the size that heaps should keep moves
that rule, as any app's own block would, and touches no memory. As each heap keeps its own peak, there must be
few of them.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asgi_mlperf.host.environment import says_of_heaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger("asgi_mlperf")

_MEBIBYTE = 1 << 20
_LEAST, _MOST = 16 * _MEBIBYTE, 64 * _MEBIBYTE  # glibc's rule ends at 64: so large is a thread's heap
_PART_OF_MEMORY = 8
_UNLIMITED = 8  # once there are more, glibc's own limit holds for good: as many for each CPU (on 64 bits)
_BESIDE_BLOCK = 8192  # its header, and what rounds it up to pages: more than 32 MiB would move nothing
_M_ARENA_MAX = -8  # malloc.h
_LOCKED_SINCE = (2, 27)  # before, malloc_info looked at heaps that others changed meanwhile


@dataclass(frozen=True, slots=True)
class Heaps:
    """How many heaps the threads of a process share, and how many free bytes each keeps at its end."""

    count: int
    kept: int


def heaps(cpus: int, memory: int | None, workers: int) -> Heaps:
    """Return what suits a worker of ``cpus`` CPUs, where ``workers`` share ``memory`` bytes, or any number.

    As many heaps as threads can run at once, two to eight, so that hardly one waits for another's; together
    they keep an eighth of a worker's memory, each between 16 and 64 MiB.
    """
    count = min(max(2, cpus), _UNLIMITED)
    kept = _MOST if memory is None else memory // workers // _PART_OF_MEMORY // count
    return Heaps(count, max(_LEAST, min(kept, _MOST)))


@contextmanager
def freed_memory_kept(wanted: Heaps, environ: Mapping[str, str]) -> Iterator[None]:
    """Have threads share heaps that keep freed memory, where nothing is in the way.

    Heaps from before stay, also beyond that count. Afterwards there may be more again, unless glibc has been
    asked for a further one meanwhile, which fixes the limit; what each keeps, it goes on keeping.
    """
    reason, libc = in_the_way(environ), _glibc()
    if reason is not None or libc is None:
        log.info("freed memory is left to the allocator's own rule: %s", reason)
        yield
        return
    libc.mallopt(_M_ARENA_MAX, wanted.count)
    libc.free(libc.malloc(wanted.kept // 2 - _BESIDE_BLOCK))
    try:
        yield
    finally:
        libc.mallopt(_M_ARENA_MAX, _UNLIMITED * (os.cpu_count() or 1))


def in_the_way(environ: Mapping[str, str]) -> str | None:
    """Say why this process's heaps are left alone, None if they need not be."""
    if told := says_of_heaps(environ):
        return f"as the environment says: {' '.join(told)}"
    libc = _glibc()
    if libc is None:
        return "another allocator than glibc's"
    if (count := _count(libc)) > _UNLIMITED:
        return f"there are {count} heaps already, which glibc does not limit any more"
    return None


def _glibc() -> ctypes.CDLL | None:
    """Return glibc if this process allocates with it, and not with what was preloaded."""
    try:
        libc, program = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
        theirs, ours = (ctypes.cast(each.malloc, ctypes.c_void_p).value for each in (libc, program))
        libc.gnu_get_libc_version.restype = ctypes.c_char_p
        version = tuple(map(int, libc.gnu_get_libc_version().split(b".")[:2]))
        if theirs != ours or version < _LOCKED_SINCE:
            return None
        libc.malloc.restype = libc.open_memstream.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        libc.free.argtypes = libc.fclose.argtypes = [ctypes.c_void_p]
        libc.open_memstream.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (OSError, AttributeError, ValueError):
        return None
    return libc


def _count(libc: ctypes.CDLL) -> int:
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
    if not stream:
        return 1
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    count = ctypes.string_at(text.value or 0, size.value).count(b"<heap nr=")
    libc.free(text)
    return count
