"""Inference threads give way: where CPUs are short, the event loop goes first."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NICEST = 19
_THIS_THREAD = 0


@contextmanager
def giving_way(nice: int) -> Iterator[None]:
    """Let the calling thread be ``nice`` steps nicer than its process, inside this block, on Linux.

    Threads that it starts inherit it. Only the privileged may take it back (``CAP_SYS_NICE``); a thread of
    others keeps it. Where it is forbidden altogether, nothing happens.
    """
    if not nice or sys.platform != "linux":  # elsewhere it would be the process's
        yield
        return
    found = None
    with suppress(OSError):
        wanted = min(_NICEST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + nice)
        before = os.getpriority(os.PRIO_PROCESS, _THIS_THREAD)
        if wanted > before:
            os.setpriority(os.PRIO_PROCESS, _THIS_THREAD, wanted)
            found = before
    try:
        yield
    finally:
        if found is not None:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, _THIS_THREAD, found)
