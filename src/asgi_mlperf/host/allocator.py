"""glibc's allocator, kept from giving a request's memory back to the kernel and taking it anew for the next.

glibc gives the end of a heap back when twice the largest block that was ever freed is free there: two
activations of a network, which are free after every request. Whether it does so each time is a matter of a
few kilobytes that something else left in the heap, and page faults may then take longer than the model.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEBIBYTE = 1 << 20
_LARGEST_FROM_HEAP = 32 * _MEBIBYTE  # glibc's DEFAULT_MMAP_THRESHOLD_MAX
_OPTIONS = {
    "MALLOC_MMAP_THRESHOLD_": -3,
    "MALLOC_TRIM_THRESHOLD_": -1,
}  # malloc.h: M_MMAP_…, M_TRIM_THRESHOLD


def thresholds(keep_mib: int) -> dict[str, str]:
    """Return the variables that let every heap keep ``keep_mib`` MiB; none for 0, which is glibc's own rule.

    That rule raises its thresholds with the blocks that are freed, to 32 and 64 MiB at most; these start
    there.
    """
    keep = keep_mib * _MEBIBYTE
    sizes = (min(keep // 2, _LARGEST_FROM_HEAP), keep)
    return {name: str(size) for name, size in zip(_OPTIONS, sizes, strict=True)} if keep else {}


def keep_freed(keep_mib: int, environ: Mapping[str, str]) -> bool:
    """Let every heap keep ``keep_mib`` MiB, for the rest of the process: nobody can read what was before.

    Return whether it does: what ``environ`` says of it wins, and elsewhere than with glibc nothing happens.
    """
    is_told = "glibc.malloc" in environ.get("GLIBC_TUNABLES", "") or any(name in environ for name in _OPTIONS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if is_told or mallopt is None or not keep_mib:
        return False
    for name, size in thresholds(keep_mib).items():
        mallopt(_OPTIONS[name], int(size))
    return True
