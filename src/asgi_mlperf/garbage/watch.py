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
def watching(look: Callable[[], None], give_up: Callable[[], None], *, interval_s: float) -> Iterator[None]:
    """Call ``look`` every ``interval_s`` seconds from a thread of its own, until the block ends.

    Should ``look`` ever raise, ``give_up`` is called and the thread ends.
    """
    over = threading.Event()

    def run() -> None:
        try:
            while not over.wait(interval_s):
                look()
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
