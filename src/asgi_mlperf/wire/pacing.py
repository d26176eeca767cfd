"""Long work in a thread gives the event loop its turn: all threads share one interpreter."""

from __future__ import annotations

import time

BUDGET_S = 0.001
"""How long work on a heavy body holds the interpreter at a time, apart from the call that it is in."""
_BREATH_S = 0.0002


class Pace:
    """Pauses of work on a heavy body, a millisecond apart. Only for worker threads, as it sleeps."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def breathe(self) -> None:
        """Pause, when the budget is spent.

        Without a real sleep the event loop waits a whole switch interval for the interpreter, every time.
        """
        if time.perf_counter() - self._since >= BUDGET_S:
            time.sleep(_BREATH_S)
            self._since = time.perf_counter()


class _NoPace(Pace):
    def breathe(self) -> None:
        """Go on, as light work on the event loop does."""


LIGHT = _NoPace()
