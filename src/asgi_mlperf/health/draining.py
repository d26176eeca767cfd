"""Learns of the end from the signal, long before the server ends the lifespan."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asgi_mlperf.health.readiness import Readiness


@contextmanager
def draining_on_signals(readiness: Readiness, drain: Callable[[], None]) -> Iterator[None]:
    """Turn readiness off and call ``drain`` when SIGTERM or SIGINT arrives; the server's handlers go on.

    A server stops accepting first and ends the lifespan last, so the lifespan's end is too late to tell
    a load balancer. Only in the main thread, where Python delivers signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    undo = [_chain(number, readiness, drain) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


def _chain(number: signal.Signals, readiness: Readiness, drain: Callable[[], None]) -> Any:
    found = signal.getsignal(number)
    if not callable(found):
        return lambda: None  # the default action ends the process, or the handler is not Python's

    def handle(received: int, frame: Any) -> None:
        readiness.drain()
        drain()
        found(received, frame)

    signal.signal(number, handle)

    def put_back() -> None:
        if signal.getsignal(number) is handle:
            signal.signal(number, found)

    return put_back
