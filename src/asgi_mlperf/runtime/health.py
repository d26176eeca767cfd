"""What supervisors are told: the parts of health, put together and fed by the other wings."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.health.checks import Check, Checks
from asgi_mlperf.health.heartbeat import Heartbeat
from asgi_mlperf.health.readiness import Readiness
from asgi_mlperf.inference.pool import where

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from asgi_mlperf.inference.engine import Engine
    from asgi_mlperf.runtime.process import Process

_MEMORY_VALVE = "memory grows faster than it is freed: the garbage collector's valve is open"


class Health:
    """The state of this worker, from before anything starts."""

    def __init__(self, process: Process, checks: Sequence[Check]) -> None:
        """Begin with the start still to come."""
        settings = process.settings.health
        self._pauses = process.pauses
        self.checks = Checks(
            checks,
            timeout_s=settings.check_timeout_ms / 1000,
            cache_s=settings.check_cache_ms / 1000,
            clock=process.clock,
        )
        self.readiness = Readiness(self.checks)
        self.heartbeat = Heartbeat(
            process.loop, limit_s=settings.loop_stuck_ms / 1000, clock=process.clock, where=where
        )

    def valve(self) -> list[str]:
        """Say that memory outgrew what the garbage schedule allows, while it does."""
        return [_MEMORY_VALVE] if self._pauses.state.valve_open_for == "memory" else []


@asynccontextmanager
async def watched(health: Health, engine: Engine) -> AsyncIterator[None]:
    """Ask the app's checks, watch the event loop and mind the other wings' reasons inside this block."""
    readiness = health.readiness
    async with health.checks.lifespan():
        with (
            health.heartbeat.beating(),
            readiness.checking(engine.stuck),
            readiness.checking(health.valve),
        ):
            yield
