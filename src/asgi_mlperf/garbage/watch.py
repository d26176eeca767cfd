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
def watching(
    look: Callable[[], tuple[float, float]], give_up: Callable[[], None], *, first_s: float
) -> Iterator[Callable[[], None]]:
    """Call ``look`` again and again until the block ends, the first time after ``first_s`` seconds.

    It returns the seconds until the next look, once as they are usually, once as they are at rest: so long
    is waited unless what is yielded here is called, in any thread; from then on it is the usual time.
    ``look`` is called from a thread of its own, which ends after a call of ``give_up`` should it ever raise.
    """
    stirred = threading.Event()
    over = False

    def run() -> None:
        try:
            usual_s = interval_s = first_s
            while not over:
                if stirred.wait(interval_s):
                    stirred.clear()
                    interval_s = usual_s
                else:
                    usual_s, interval_s = look()
        except Exception:
            give_up()
            log.exception("the garbage schedule failed; CPython collects by itself from now on")

    thread = threading.Thread(target=run, name="asgi-mlperf-gc", daemon=True)
    thread.start()
    try:
        yield stirred.set
    finally:
        over = True
        stirred.set()
        thread.join()
