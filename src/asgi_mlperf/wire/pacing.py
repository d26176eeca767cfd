"""Long work in a thread gives the event loop its turn: all threads share one interpreter."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

BUDGET_S = 0.001
"""How long work on a heavy body holds the interpreter at a time, apart from the call that it is in."""
_LONGEST_WAIT_S = 0.005
"""A loop that does not turn for so long runs something that lets the interpreter go, or has much to do."""
_BREATH_S = 0.0002


class Pace:
    """Pauses of work on a heavy body, a millisecond apart. Made on the event loop, for a worker thread."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):  # trio
            self._loop = asyncio.get_running_loop()

    def breathe(self) -> None:
        """Wait until the event loop has turned once, or for 5 ms, when the budget is spent.

        Sleeping is worse: it takes its time also where the loop has nothing to do, and where the system wakes
        the loop later than the sleeper, the interpreter is taken again.
        """
        if time.perf_counter() - self._since < BUDGET_S:
            return
        if self._loop is None:
            time.sleep(_BREATH_S)
        else:
            _await_turn(self._loop)
        self._since = time.perf_counter()


def _await_turn(loop: asyncio.AbstractEventLoop) -> None:
    turned = threading.Lock()
    turned.acquire()
    with suppress(RuntimeError):  # it was closed
        loop.call_soon_threadsafe(turned.release)
        turned.acquire(timeout=_LONGEST_WAIT_S)


class _NoPace(Pace):
    def __init__(self) -> None: ...

    def breathe(self) -> None:
        """Go on, as light work on the event loop does."""


LIGHT = _NoPace()
