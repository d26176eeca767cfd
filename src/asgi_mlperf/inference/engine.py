"""The pools, limits and batchers of one start."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from asgi_mlperf.inference.batching import Batcher
from asgi_mlperf.inference.deadlines import clock
from asgi_mlperf.inference.executors import InlineExecutor, TaskExecutor, ThreadExecutor
from asgi_mlperf.inference.limits import AdaptiveLimit, Gradient
from asgi_mlperf.inference.options import is_generator_function, runs_on_loop
from asgi_mlperf.inference.placement import AutoPlacement, FixedPlacement, cpu_clock_of_this_thread
from asgi_mlperf.inference.pool import Pool
from asgi_mlperf.inference.streams import StreamBatcher
from asgi_mlperf.inference.waiting import name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractContextManager

    from asgi_mlperf.hooks import BatchObservers, PoolObservers
    from asgi_mlperf.inference.gate import Gate, PoolSettings
    from asgi_mlperf.inference.options import BatchOptions
    from asgi_mlperf.inference.placement import Placement

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
    through ``around_job``, on the event loop through ``around_inline``. Each thread is inside
    ``around_thread``, called with its pool's ``nice``, and calls ``when_idle`` after 10 s without a call.
    ``spare_cpus`` is how many CPUs there are besides the event loop's.
    """

    def __init__(
        self,
        *,
        pools: Mapping[str, PoolSettings],
        threads: int,
        around_job: Callable[[Callable[[], Any]], Any],
        around_thread: Callable[[int], AbstractContextManager[None]],
        when_idle: Callable[[], None],
        observers: Callable[[str], PoolObservers],
        around_inline: Callable[[Callable[[], Any]], Any],
        batch_observers: Callable[[str], BatchObservers],
        spare_cpus: int = 0,
    ) -> None:
        """Prepare; use within ``lifespan``."""
        self._settings = pools[DEFAULT_POOL]
        self._spare_cpus = spare_cpus
        self._observers = observers
        self._batch_observers = batch_observers
        self._batchers: WeakSet[Batcher] = WeakSet()
        # One for all batches: a batch belongs to none of its callers.
        self._context = contextvars.copy_context()
        self._joined: list[Gate[Any]] = []
        self._closed = False
        self._inline = InlineExecutor(around_job=around_inline)
        self._tasks = TaskExecutor()
        self._pools = {
            name: Pool(
                settings,
                name=name,
                slots=settings.threads or threads,
                executor=ThreadExecutor(
                    settings.threads or threads,
                    around_job=around_job,
                    around_thread=partial(around_thread, settings.nice),
                    when_idle=when_idle,
                ),
                inline=self._inline,
                observers=observers(name),
            )
            for name, settings in pools.items()
        }
        self._serving = False

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Engine]:
        """Run calls inside this block."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._tasks.lifespan())
            stack.callback(self.close)
            for pool in self._pools.values():
                await stack.enter_async_context(pool.lifespan())
            yield self

    def pool(self, name: str = DEFAULT_POOL) -> Pool:
        """Return a pool by its name."""
        return self._pools[name]

    def batcher(self, func: Callable[[Any], Any], options: BatchOptions) -> Batcher:
        """Return a new batcher of ``func``, in a pool; a coroutine function gets slots of its own.

        So a coroutine function may use the pools without waiting for a slot that it holds itself.
        """
        name = name_of(func)
        kind = StreamBatcher if is_generator_function(func) else Batcher
        batcher = kind(
            func,
            options,
            pool=self._pool_of_tasks(name) if runs_on_loop(func) else self._pools[options.pool],
            placement=_placement(func, options, spare_cpus=self._spare_cpus),
            observers=self._batch_observers(name),
            context=self._context,
        )
        self._batchers.add(batcher)
        return batcher

    def _pool_of_tasks(self, name: str) -> Pool:
        pool = Pool(
            self._settings,
            name=name,
            slots=_CONCURRENT_BATCHES,
            executor=self._tasks,
            observers=self._observers(name),
        )
        self._join(pool)
        return pool

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
        """Say which pools are stuck, in which call, for how long and where, and which batches are down."""
        return [
            *(reason for pool in self._pools.values() if (reason := pool.stuck())),
            *(batcher.down for batcher in self._batchers if batcher.down),
        ]

    async def drain(self, timeout_s: float) -> None:
        """Let running and waiting calls finish, at most ``timeout_s`` seconds."""
        await asyncio.gather(*(gate.drain(timeout_s) for gate in self._gates() if isinstance(gate, Pool)))

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True
        for gate in self._gates():
            gate.close()
        for batcher in self._batchers:
            batcher.close()

    def _join(self, gate: Gate[Any]) -> None:
        self._joined.append(gate)
        if self._serving:
            gate.serve()
        if self._closed:
            gate.close()

    def _gates(self) -> list[Gate[Any]]:
        return [*self._pools.values(), *self._joined]


def _placement(func: Callable[..., Any], options: BatchOptions, *, spare_cpus: int) -> Placement:
    executor = options.executor or options.default_executor
    if is_generator_function(func) or runs_on_loop(func) or executor == "thread":
        return FixedPlacement(inline=False)
    if executor == "inline":
        return FixedPlacement(inline=True)
    return AutoPlacement(
        options.inline_budget_s, clock=clock, spare_cpus=spare_cpus, loop_cpu=cpu_clock_of_this_thread()
    )
