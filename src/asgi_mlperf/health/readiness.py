"""Why a worker should not get traffic, and the three endpoints: ``/livez``, ``/readyz``, ``/startupz``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.health.checks import Checks


class HealthSettings(BaseModel):
    """Where a supervisor asks, what makes a worker unfit, and how long a stopping one may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    live_path: str = Field(default="/livez", pattern="^/", description="path of the liveness endpoint")
    ready_path: str = Field(default="/readyz", pattern="^/", description="path of the readiness endpoint")
    startup_path: str = Field(default="/startupz", pattern="^/", description="path of the start-up endpoint")
    loop_stuck_ms: int = Field(
        default=10_000,
        ge=100,
        le=3_600_000,
        description="liveness is off once the event loop was blocked this long, until it has turned as long",
    )
    check_timeout_ms: int = Field(
        default=800,
        ge=1,
        le=3_600_000,
        description="time for an answer of each `plugin.check`; Kubernetes itself waits 1 s for all",
    )
    check_cache_ms: int = Field(
        default=1_000, ge=0, le=3_600_000, description="how long the answers of `plugin.check` are kept"
    )
    drain_ms: int = Field(
        default=10_000,
        ge=0,
        le=3_600_000,
        description="time that model calls still running at shutdown may take",
    )


class Readiness:
    """Why this worker should not get traffic now; nothing means ready."""

    def __init__(self, checks: Checks) -> None:
        """Begin with the start still to come; ``checks`` are the app's own, asked once it has started."""
        self._phase: str | None = "starting"
        self._draining = False
        self._checks = checks
        self._sources: list[Callable[[], list[str]]] = []

    @property
    def reasons(self) -> list[str]:
        """The reasons not to be ready, sorted; of the app's own checks, what they said last."""
        return sorted({*self._own_reasons(), *self._checks.last})

    @contextmanager
    def checking(self, source: Callable[[], list[str]]) -> Iterator[None]:
        """Ask ``source`` for further reasons inside this block, at every probe: it must not wait."""
        self._sources.append(source)
        try:
            yield
        finally:
            self._sources.remove(source)

    def begin(self, phase: str) -> None:
        """Name the phase of the start that begins."""
        self._phase = phase

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be ready inside this block, until a signal announces the end."""
        self._phase = None
        try:
            yield
        finally:
            self.drain()

    def drain(self) -> None:
        """Turn away new traffic for good."""
        self._draining = True

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200, or 503 with the reasons; the app's own checks are asked again if that is due."""
        if self._phase is None and not self._draining:
            await self._checks.ask()
        await answer("ready", self.reasons)(scope, receive, send)

    async def started(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503 until the app and its warm-ups have started, 200 ever after."""
        await answer("started", [] if self._phase is None else [self._phase])(scope, receive, send)

    def _own_reasons(self) -> Iterator[str]:
        if self._phase is not None:
            yield self._phase
        if self._draining:
            yield "draining"
        for source in self._sources:
            yield from source()


def answer(state: str, reasons: list[str]) -> JSONResponse:
    """Answer a probe: 200 if there is no reason, else 503."""
    return JSONResponse({state: not reasons, "reasons": reasons}, 503 if reasons else 200)
