"""Pools and limits, as an app declares them on its plugin at import. They work while it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary

from starlette.concurrency import run_in_threadpool

from asgi_mlperf.inference.engine import DEFAULT_POOL, Engine, LimitBounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from asgi_mlperf.inference.limits import AdaptiveLimit

Priority = Literal["high", "normal", "low"]
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class InferencePool:
    """Inference threads with a queue, limits and a metric label of their own: ``Plugin.pool``."""

    def __init__(self, find_engine: Callable[[], Engine | None], name: str = DEFAULT_POOL) -> None:
        """Declare; nothing runs before the plugin's lifespan."""
        self.name = name
        self._find_engine = find_engine

    async def run(
        self,
        func: Callable[[*Arguments], Result],
        *args: *Arguments,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline that reaches the queue, not only the await
        priority: Priority | None = None,
    ) -> Result:
        """Call ``func(*args)`` on one of the pool's threads and return its result, as ``Plugin.run`` does."""
        engine = self._find_engine()
        if engine is None:
            return await run_in_threadpool(func, *args)
        result: Result = await engine.pool(self.name).run(func, args, timeout, priority)
        return result


class RemoteLimit:
    """A concurrency limit that finds itself, for calls to a remote model server: ``Plugin.limit``."""

    def __init__(self, find_engine: Callable[[], Engine | None], name: str, bounds: LimitBounds) -> None:
        """Declare; nothing is limited before the plugin's lifespan."""
        self.name = name
        self._find_engine = find_engine
        self._bounds = bounds
        self._limits: WeakKeyDictionary[Engine, AdaptiveLimit] = WeakKeyDictionary()

    @asynccontextmanager
    async def __call__(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline that reaches the queue, not only the await
        priority: Priority | None = None,
    ) -> AsyncIterator[None]:
        """Hold a place inside this block, and learn from how long it takes."""
        engine = self._find_engine()
        if engine is None:
            yield
            return
        limit = self._limits.get(engine)
        if limit is None:
            limit = self._limits[engine] = engine.limit(self.name, self._bounds)
        async with limit(timeout_s=timeout, priority=priority):
            yield
