"""Shorter turns of the interpreter while something in a thread computes for long."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TURN_S = 0.0005

_lock = threading.Lock()
_inside = 0
_found_s = _set_s = 0.0


@contextmanager
def short_turns() -> Iterator[None]:
    """Let threads wait half a millisecond for the interpreter inside this block, and not 5 as CPython has it.

    A thread that computes makes the event loop wait for a whole turn whenever it wants to run, and waits
    itself for those of other threads. The interval is the process's: it is put back by the last to leave,
    unless somebody else has set it meanwhile.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _found_s, _set_s  # noqa: PLW0603 - of the process, as the interval is
    with _lock:
        if not _inside:
            _found_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_TURN_S, _found_s))
            _set_s = sys.getswitchinterval()  # rounded to what CPython can keep
        _inside += 1


def _leave() -> None:
    global _inside  # noqa: PLW0603 - as above
    with _lock:
        _inside -= 1
        if not _inside and sys.getswitchinterval() == _set_s:
            sys.setswitchinterval(_found_s)
