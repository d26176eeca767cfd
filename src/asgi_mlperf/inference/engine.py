"""The pools, limits and batchers of one start."""

from __future__ import annotations

import asyncio
import contextvars
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
_CONCURRENT_BATCHES = 8


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
        # One for all batches: a batch belongs to none of its callers.
        self._context = contextvars.copy_context()
        self._joined: list[Gate[Any]] = []
        self._closed = False
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
        self._inline = InlineExecutor()
        self._serving = False

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Engine]:
        """Run calls inside this block."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._inline.lifespan())
            stack.callback(self.close)
            for pool in self._pools.values():
                await stack.enter_async_context(pool.lifespan())
            yield self

    def pool(self, name: str = DEFAULT_POOL) -> Pool:
        """Return a pool by its name."""
        return self._pools[name]

    def batcher(self, func: Callable[[list[Any]], Any], *, max_size: int, pool: str) -> Batcher:
        """Return a new batcher of ``func``, in a pool; a coroutine function gets slots of its own.

        So a coroutine function may use the pools without waiting for a slot that it holds itself.
        """
        name = name_of(func)
        if is_coroutine_function(func):
            runs_in = Pool(
                self._settings,
                name=name,
                slots=_CONCURRENT_BATCHES,
                executor=self._inline,
                observers=self._observers(name),
            )
            self._join(runs_in)
        else:
            runs_in = self._pools[pool]
        sizes = self._batch_sizes(name)
        return Batcher(func, max_size=max_size, pool=runs_in, sizes=sizes, context=self._context)

    def limit(self, name: str, bounds: LimitBounds) -> AdaptiveLimit:
        """Return a new adaptive limit."""
        gradient = Gradient(initial=bounds.initial, least=bounds.least, most=bounds.most)
        limit = AdaptiveLimit(self._settings, name=name, gradient=gradient, observers=self._observers(name))
        self._join(limit)
        return limit

    def serve(self) -> None:
        """From now on, calls without a timeout of their own get the default one."""
        self._serving = True
        for gate in self._gates():
            gate.serve()

    def stuck(self) -> list[str]:
        """Say which pools are stuck, in which call, for how long and where."""
        return [reason for pool in self._pools.values() if (reason := pool.stuck())]

    async def drain(self, timeout_s: float) -> None:
        """Let running and waiting calls finish, at most ``timeout_s`` seconds."""
        await asyncio.gather(*(gate.drain(timeout_s) for gate in self._gates() if isinstance(gate, Pool)))

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True
        for gate in self._gates():
            gate.close()

    def _join(self, gate: Gate[Any]) -> None:
        self._joined.append(gate)
        if self._serving:
            gate.serve()
        if self._closed:
            gate.close()

    def _gates(self) -> list[Gate[Any]]:
        return [*self._pools.values(), *self._joined]
