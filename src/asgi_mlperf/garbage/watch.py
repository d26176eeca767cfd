"""A thread that looks after memory when the event loop cannot."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("asgi_mlperf")


@contextmanager
def watching(look: Callable[[], float], give_up: Callable[[], None], *, first_s: float) -> Iterator[None]:
    """Call ``look`` after ``first_s`` seconds, then after as many as it returns, until the block ends.

    It is called from a thread of its own, which ends after a call of ``give_up`` should ``look`` ever raise.
    """
    over = threading.Event()

    def run() -> None:
        try:
            interval_s = first_s
            while not over.wait(interval_s):
                interval_s = look()
        except Exception:
            give_up()
            log.exception("the garbage schedule failed; CPython collects by itself from now on")

    thread = threading.Thread(target=run, name="asgi-mlperf-gc", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
