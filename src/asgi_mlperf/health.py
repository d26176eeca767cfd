"""Whether this worker lives, and whether it wants traffic: ``/livez`` and ``/readyz``."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Receive, Scope, Send


class HealthSettings(BaseModel):
    """Where a supervisor asks, and how long a stopping worker may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    live_path: str = Field(default="/livez", pattern="^/", description="path of the liveness endpoint")
    ready_path: str = Field(default="/readyz", pattern="^/", description="path of the readiness endpoint")
    drain_ms: int = Field(
        default=10_000,
        ge=0,
        le=3_600_000,
        description="time that model calls still running at shutdown may take",
    )


class Readiness:
    """Why this worker should not get traffic now; nothing means ready."""

    def __init__(self) -> None:
        """Begin with the start still to come."""
        self._reasons = {"starting"}
        self._checks: list[Callable[[], list[str]]] = []

    @property
    def reasons(self) -> list[str]:
        """The reasons not to be ready, sorted."""
        return sorted({*self._reasons, *(reason for check in self._checks for reason in check())})

    @contextmanager
    def checking(self, check: Callable[[], list[str]]) -> Iterator[None]:
        """Ask ``check`` for further reasons inside this block."""
        self._checks.append(check)
        try:
            yield
        finally:
            self._checks.remove(check)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be ready inside this block, until a signal announces the end."""
        self._reasons.discard("starting")
        try:
            yield
        finally:
            self.drain()

    def drain(self) -> None:
        """Turn away new traffic for good."""
        self._reasons.add("draining")

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200: the event loop turns."""
        await JSONResponse({"live": True})(scope, receive, send)

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200, or 503 with the reasons."""
        reasons = self.reasons
        response = JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)
        await response(scope, receive, send)


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
