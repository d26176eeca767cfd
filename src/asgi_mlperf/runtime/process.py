"""What the stages of one start share, and where they put what others may use."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from asgi_mlperf.garbage.pauses import Pauses
from asgi_mlperf.hooks import Serving, Traffic
from asgi_mlperf.host.cpu import CPUBudget, cpu_budget
from asgi_mlperf.host.memory import memory_limit
from asgi_mlperf.inference.deadlines import clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager

    from asgi_mlperf.hooks import Clock
    from asgi_mlperf.inference.engine import Engine
    from asgi_mlperf.settings import Settings

log = logging.getLogger("asgi_mlperf")

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

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
    memory_limit: int | None
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


async def off_loop(func: Callable[[*Arguments], Result], *args: *Arguments) -> Result:
    """Call what reads files or waits, in a thread that ends with it: the event loop must turn meanwhile."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="asgi-mlperf-start")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, func, *args)
    finally:
        executor.shutdown(wait=False)


@asynccontextmanager
async def left_off_loop(context: AbstractContextManager[Result]) -> AsyncIterator[Result]:
    """Enter ``context`` here and leave it off the event loop, where it may wait for a thread to end."""
    value = context.__enter__()
    try:
        yield value
    finally:
        await off_loop(context.__exit__, None, None, None)


async def process_of(settings: Settings) -> Process:
    """Look at this process, once for each start."""
    return await off_loop(_process, settings, asyncio.get_running_loop())


def _process(settings: Settings, loop: asyncio.AbstractEventLoop) -> Process:
    traffic = Traffic()
    budget = cpu_budget(cpus=settings.threads.cpus, workers=settings.workers, environ=os.environ)
    return Process(
        settings=settings,
        loop=loop,
        clock=clock,
        traffic=traffic,
        pauses=Pauses(clock, traffic),
        budget=budget,
        memory_limit=memory_limit(),
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
