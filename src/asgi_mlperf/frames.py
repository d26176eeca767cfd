"""Where each Python thread is."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_MAY_HANG = sys.version_info < (3, 11, 9)


def current_frames() -> dict[int, FrameType]:
    """Return the innermost frame of each Python thread, by the thread's identifier.

    CPython before 3.11.9 holds a lock meanwhile that threads need to begin and to end. If a collection starts
    then, and what it frees lets another thread run, both wait forever (python/cpython#106883).
    """
    with collector_off() if _MAY_HANG else nullcontext():
        return sys._current_frames()  # noqa: SLF001 - documented in the standard library


@contextmanager
def collector_off() -> Iterator[None]:
    """Let no collection start by itself; afterwards it is as before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
