"""The pools, limits and batchers of one start."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asgi_mlperf.inference.batching import Batcher, is_coroutine_function
from asgi_mlperf.inference.executors import InlineExecutor, ThreadExecutor
from asgi_mlperf.inference.limits import AdaptiveLimit, Gradient
from asgi_mlperf.inference.pool import Pool
from asgi_mlperf.inference.waiting import name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from asgi_mlperf.hooks import Observer, PoolObservers
    from asgi_mlperf.inference.gate import Gate, PoolSettings

DEFAULT_POOL = "default"
_COROUTINES = "coroutines"


@dataclass(frozen=True)
class LimitBounds:
    """Where an adaptive limit begins, and what it stays between."""

    initial: int
    least: int
    most: int


class Engine:
    """What runs model calls while the plugin runs on an event loop.

    ``pools`` gives the settings of each pool by name, ``threads`` that of the default one; each call runs
    through ``around_job``.
    """

    def __init__(
        self,
        *,
        pools: Mapping[str, PoolSettings],
        threads: int,
        around_job: Callable[[Callable[[], Any]], Any],
        observers: Callable[[str], PoolObservers],
        batch_sizes: Callable[[str], Observer],
    ) -> None:
        """Prepare; use within ``lifespan``."""
        self._settings = pools[DEFAULT_POOL]
        self._observers = observers
        self._batch_sizes = batch_sizes
        self._batchers: dict[Any, Batcher] = {}
        self._limits: dict[str, AdaptiveLimit] = {}
        self._pools = {
            name: Pool(
                settings,
                name=name,
                slots=settings.threads or threads,
                executor=ThreadExecutor(settings.threads or threads, around_job=around_job),
                observers=observers(name),
            )
            for name, settings in pools.items()
        }
        # Slots of its own, so that a coroutine function may call the pool without waiting for itself.
        self._coroutines = Pool(
            self._settings,
            name=_COROUTINES,
            slots=threads,
            executor=InlineExecutor(),
            observers=observers(_COROUTINES),
        )

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Engine]:
        """Run calls inside this block."""
        async with AsyncExitStack() as stack:
            for pool in self._all_pools():
                await stack.enter_async_context(pool.lifespan())
            yield self

    def pool(self, name: str = DEFAULT_POOL) -> Pool:
        """Return a pool by its name."""
        return self._pools[name]

    def batcher(self, func: Callable[[list[Any]], Any], *, max_size: int, pool: str) -> Batcher:
        """Return the batcher of ``func``, the same one every time."""
        batcher = self._batchers.get(func)
        if batcher is None:
            runs_in = self._coroutines if is_coroutine_function(func) else self._pools[pool]
            sizes = self._batch_sizes(name_of(func))
            batcher = self._batchers[func] = Batcher(func, max_size=max_size, pool=runs_in, sizes=sizes)
        return batcher

    def limit(self, name: str, bounds: LimitBounds) -> AdaptiveLimit:
        """Return the adaptive limit of that name; its bounds are those of the first call."""
        limit = self._limits.get(name)
        if limit is None:
            gradient = Gradient(initial=bounds.initial, least=bounds.least, most=bounds.most)
            limit = self._limits[name] = AdaptiveLimit(
                self._settings, name=name, gradient=gradient, observers=self._observers(name)
            )
            limit.closed = self._coroutines.closed
            limit.default_timeout_s = self._coroutines.default_timeout_s
        return limit

    def serve(self) -> None:
        """From now on, calls without a timeout of their own get the default one."""
        for gate in self._gates():
            gate.serve()

    def stuck(self) -> list[str]:
        """Say which pools are stuck, in which call, for how long and where."""
        return [reason for pool in self._all_pools() if (reason := pool.stuck())]

    async def drain(self, timeout_s: float) -> None:
        """Let running and waiting calls finish, at most ``timeout_s`` seconds."""
        await asyncio.gather(*(pool.drain(timeout_s) for pool in self._all_pools()))

    def close(self) -> None:
        """Refuse everything from now on."""
        for gate in self._gates():
            gate.close()

    def _all_pools(self) -> list[Pool]:
        return [*self._pools.values(), self._coroutines]

    def _gates(self) -> list[Gate[Any]]:
        return [*self._all_pools(), *self._limits.values()]
