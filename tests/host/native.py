"""Ops of native libraries without a Python package: what ``NATIVE_LIBRARY`` names is called by ctypes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

SONAMES = {
    "libgomp": "libgomp.so.1",
    "libomp": "libomp.so.5",
    "libiomp": "libiomp5.so",
    "mkl": "libmkl_rt.so*",
    "blis": "libblis.so.*",
}
_SIDE = 600


def find(name: str) -> str | None:
    """Return where the library is: in LD_LIBRARY_PATH, among Python's packages or where Debian puts them."""
    folders = [
        *map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))),
        Path(sys.prefix, "lib"),
        *Path("/usr/lib").glob("*-linux-gnu"),
    ]
    return next((str(path) for folder in folders for path in sorted(folder.glob(SONAMES[name]))), None)


def load() -> ctypes.CDLL:
    """Load the library."""
    return ctypes.CDLL(os.environ["NATIVE_LIBRARY"], mode=ctypes.RTLD_GLOBAL)


def parallel(library: ctypes.CDLL) -> None:
    """Run a parallel region of as many threads as OpenMP wants; every runtime has libgomp's entry point."""
    region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
    library.GOMP_parallel(region, None, 0, 0)


def product(library: ctypes.CDLL) -> None:
    """Multiply two matrices."""
    row_major, as_it_is = 101, 111
    matrices = [(ctypes.c_float * _SIDE**2)() for _ in range(3)]
    one, none = ctypes.c_float(1), ctypes.c_float(0)
    left, right, result = matrices
    sizes = (row_major, as_it_is, as_it_is, _SIDE, _SIDE, _SIDE)
    library.cblas_sgemm(*sizes, one, left, _SIDE, right, _SIDE, none, result, _SIDE)


OPS: dict[str, Callable[[ctypes.CDLL], None]] = {
    "libgomp": parallel,
    "libomp": parallel,
    "libiomp": parallel,
    "mkl": product,
    "blis": product,
}
