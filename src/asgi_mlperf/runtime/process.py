"""What the stages of one start share, and where they put what others may use."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asgi_mlperf.garbage.pauses import Pauses
from asgi_mlperf.hooks import Serving, Traffic
from asgi_mlperf.host.cpu import CPUBudget, cpu_budget
from asgi_mlperf.inference.deadlines import clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.hooks import Clock, Exchange
    from asgi_mlperf.inference.engine import Engine
    from asgi_mlperf.settings import Settings

log = logging.getLogger("asgi_mlperf")

_claimed: set[str] = set()
"""What is process-wide by nature and has a plugin of this process already."""


@dataclass(frozen=True, slots=True)
class Process:
    """What every stage of one start works with."""

    settings: Settings
    loop: asyncio.AbstractEventLoop
    clock: Clock
    traffic: Traffic
    pauses: Pauses
    budget: CPUBudget
    inference_threads: int


class Publisher:
    """Where a start puts what others may use, and takes it back at the end."""

    def __init__(self) -> None:
        """Begin with nothing running."""
        self.engines: dict[asyncio.AbstractEventLoop, Engine] = {}
        self.servings: dict[asyncio.AbstractEventLoop, Serving] = {}

    @contextmanager
    def engine(self, loop: asyncio.AbstractEventLoop, engine: Engine) -> Iterator[None]:
        """Offer ``engine`` to the handlers on ``loop``."""
        self.engines[loop] = engine
        try:
            yield
        finally:
            del self.engines[loop]

    @contextmanager
    def serving(self, loop: asyncio.AbstractEventLoop, serving: Serving) -> Iterator[None]:
        """Offer ``serving`` to the middleware on ``loop``, in place of what was there."""
        before = self.servings.get(loop)
        self.servings[loop] = serving
        try:
            yield
        finally:
            if before is None:
                del self.servings[loop]
            else:
                self.servings[loop] = before


def process_of(settings: Settings) -> Process:
    """Look at this process, once for each start."""
    traffic = Traffic()
    budget = cpu_budget(cpus=settings.threads.cpus, workers=settings.workers, environ=os.environ)
    return Process(
        settings=settings,
        loop=asyncio.get_running_loop(),
        clock=clock,
        traffic=traffic,
        pauses=Pauses(clock, traffic),
        budget=budget,
        inference_threads=settings.pool.threads or budget.per_worker,
    )


@contextmanager
def claim(name: str, *, wanted: bool) -> Iterator[bool]:
    """Yield whether something process-wide is this plugin's to rule inside this block."""
    if not wanted or name in _claimed:
        if wanted:
            log.warning("another plugin of this process already rules %s; this one leaves it alone", name)
        yield False
        return
    _claimed.add(name)
    try:
        yield True
    finally:
        _claimed.discard(name)


def no_closer(_: Exchange) -> None:
    """Do nothing at the end of an exchange."""
