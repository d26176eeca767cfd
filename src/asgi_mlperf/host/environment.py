"""The variables that native libraries read once, when they are loaded."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "ORT_INTRA_OP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
"""Variables that take a number of threads."""


def thread_counts(threads: int) -> dict[str, str]:
    """Return what keeps an op of a library that is loaded from now on to ``threads`` native threads."""
    return dict.fromkeys(COUNTS, str(threads))


def says_of_heaps(environ: Mapping[str, str]) -> list[str]:
    """Return the variables by which ``environ`` rules glibc's heaps: if there is one, they are left to it."""
    told = sorted(name for name in environ if name.startswith("MALLOC_"))
    return told + ["GLIBC_TUNABLES"] * ("malloc" in environ.get("GLIBC_TUNABLES", ""))


def heap_variables(count: int, kept: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what has threads share ``count`` heaps that keep ``kept`` bytes each, as far as that is open."""
    if says_of_heaps(environ):
        return {}
    return {
        "MALLOC_ARENA_MAX": str(count),
        "MALLOC_MMAP_THRESHOLD_": str(kept // 2),
        "MALLOC_TRIM_THRESHOLD_": str(kept),
    }


def launch_variables(threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``thread_counts``, and how threads wait, as far as ``environ`` leaves it open.

    OpenMP threads that wait for the next part of an op spin for about 1 ms, not for 6 ms after it
    in which the event loop and other workers need the CPU (KMP_BLOCKTIME: the same for Intel's and LLVM's
    runtimes, in milliseconds); where there are more of them than CPUs they sleep at once.
    """
    spinning = {"OMP_WAIT_POLICY": "PASSIVE"}
    if "OMP_WAIT_POLICY" not in environ:  # which they would overrule
        spinning |= {"GOMP_SPINCOUNT": "50000", "KMP_BLOCKTIME": "1"}
    return {**thread_counts(threads), **spinning}


@contextmanager
def exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set ``variables`` inside this block, except those that are set already; child processes get them."""
    added = {name: text for name, text in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, text in added.items():
            if os.environ.get(name) == text:
                del os.environ[name]
