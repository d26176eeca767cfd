"""The facade: what an app holds, declares its model functions on, and is wrapped by."""

from __future__ import annotations

import logging
from asyncio import _get_running_loop  # None where none runs, as under trio: the public one raises
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from asgi_mlperf.declared.decorators import (
    BatchedDecorator,
    BatchedKeywords,
    Collated,
    CollatedDecorator,
    Output,
    SplitDecorator,
    declared,
)
from asgi_mlperf.declared.pools import Arguments, InferencePool, Priority, RemoteLimit
from asgi_mlperf.exceptions import NotRunning
from asgi_mlperf.health.checks import Check
from asgi_mlperf.inference.engine import DEFAULT_POOL, LimitBounds
from asgi_mlperf.inference.gate import PRIORITIES, PoolSettings
from asgi_mlperf.inference.options import BatchOptions, ExecutorName, Retry, is_coroutine_function
from asgi_mlperf.inference.waiting import name_of
from asgi_mlperf.lifespans import Lifespan, no_lifespan, normalized, on_event_lifespan
from asgi_mlperf.middleware import PerfMiddleware
from asgi_mlperf.runtime import Publisher, running, warmed_up_stock
from asgi_mlperf.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from starlette.applications import Starlette

    from asgi_mlperf.declared.batched import Batched, BatchedStream, Item, Result, Results
    from asgi_mlperf.hooks import Serving
    from asgi_mlperf.inference.engine import Engine

log = logging.getLogger("asgi_mlperf")

Function = TypeVar("Function", bound="Callable[..., Any]")

_FIX = (
    "pass lifespan=plugin.lifespan (or plugin.wrap(your_lifespan)) to the app, or call plugin.install(app); "
    "serve with the lifespan on; in tests use `with TestClient(app)`; for a mounted app, install the plugin "
    "on the app that mounts it"
)


class Plugin:
    """Makes an app a fast, steady machine-learning backend.

    ::

        plugin = Plugin()
        app = FastAPI(lifespan=plugin.lifespan)
        app.add_middleware(PerfMiddleware, plugin=plugin)

    The plugin itself only holds declarations. What runs, runs while the lifespan runs, once for each event
    loop that serves the app. With ``settings.enabled`` false, or on trio, everything behaves as if the
    plugin were not there: ``run`` uses Starlette's thread pool and batches hold one item.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Use ``settings``, else read them from ``ASGI_MLPERF_*``; raises ``ConfigurationError``."""
        self.settings = Settings() if settings is None else settings
        self._publisher = Publisher()
        self.servings: Mapping[Any, Serving] = self._publisher.servings
        self._started: set[Any] = set()
        self._warm_ups: list[Callable[[], Any]] = []
        self._checks: list[Check] = []
        self._wrapped: list[Lifespan] = []
        self._pools: dict[str, PoolSettings] = {DEFAULT_POOL: self.settings.pool}
        self._default_pool = InferencePool(self._engine)
        self.has_middleware = False
        self._warned = False

    def lifespan(self, app: Any) -> AbstractAsyncContextManager[Any]:
        """Run the plugin around an app without a lifespan of its own: ``FastAPI(lifespan=plugin.lifespan)``.

        FastAPI's ``on_event`` handlers, which it skips when it is given a lifespan, run inside.
        """
        return self._around(on_event_lifespan, app)

    def wrap(self, lifespan: Lifespan | None) -> Lifespan:
        """Return a lifespan that runs the plugin around ``lifespan`` and yields what that yields.

        The plugin starts before it, so that it can use ``run``, and freezes the heap after it, when the
        models are loaded.
        """
        own = no_lifespan if lifespan is None else normalized(lifespan)

        @asynccontextmanager
        async def wrapped(app: Any) -> AsyncIterator[Any]:
            async with self._around(own, app) as state:
                yield state

        self._wrapped.append(wrapped)
        return wrapped

    def install(self, app: Starlette) -> None:
        """Add the plugin to an app that exists: its lifespan is wrapped, the middleware is added.

        Installing again, or with ``enabled`` false, changes nothing. Call it last: lifespans of routers
        that FastAPI includes later run inside the plugin's, after the heap was frozen. Raises
        ``RuntimeError`` once the app started.
        """
        router = getattr(app, "router", None)
        if router is None or not hasattr(router, "lifespan_context"):
            raise TypeError(f"plugin.install takes a Starlette or FastAPI app, not {type(app).__name__}")
        if not self.settings.enabled:
            return
        if not any(middleware.kwargs.get("plugin") is self for middleware in app.user_middleware):
            app.add_middleware(PerfMiddleware, plugin=self)
        self.has_middleware = True
        if router.lifespan_context not in (self.lifespan, *self._wrapped):
            router.lifespan_context = self.wrap(router.lifespan_context)

    async def run(
        self,
        func: Callable[[*Arguments], Result],
        *args: *Arguments,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline that reaches the queue, not only the await
        priority: Priority | None = None,
    ) -> Result:
        """Call ``func(*args)`` on one of the bounded inference threads and return its result.

        Context variables reach ``func``; its exception is raised here. ``timeout`` is seconds from now,
        queue included (default ``ASGI_MLPERF_POOL__TIMEOUT_MS`` once the app has started, before that
        none; ``math.inf`` switches it off); a nearer deadline of the request or of a call around this one
        wins. Once it passes, ``DeadlineExceeded`` (504) is raised and work still waiting is never started;
        work already running keeps its thread until it ends. The same when the client leaves:
        ``ClientLeft``. Raises ``Overloaded`` (503) when the queue is full or too long for the deadline,
        and ``NotRunning`` outside the lifespan. ``priority`` orders what waits (default: that of the
        endpoint, see ``priority``, else normal); the lowest level is served too.
        """
        return await self._default_pool.run(func, *args, timeout=timeout, priority=priority)

    def pool(
        self, name: str, *, threads: int = 1, max_queue: int | None = None, timeout_ms: int | None = None
    ) -> InferencePool:
        """Declare inference threads of their own, for a model that must not share.

        They have their own queue, limits and metric label ``pool=name``; what is not given is as in the
        settings. Raises ``ValueError`` for a name that is taken.
        """
        if name in self._pools:
            raise ValueError(f"there is a pool {name!r} already; declare each pool once")
        given = {"threads": threads, "max_queue": max_queue, "timeout_ms": timeout_ms}
        changed = {field: value for field, value in given.items() if value is not None}
        self._pools[name] = PoolSettings(**{**self.settings.pool.model_dump(), **changed})
        return InferencePool(self._engine, name)

    def limit(self, name: str, *, initial: int = 8, least: int = 1, most: int = 256) -> RemoteLimit:
        """Declare a concurrency limit that finds itself, for calls to ``name``, a remote model server.

        ``async with limit():`` around each call; ``limit(timeout=…, priority=…)`` as in ``run``. It begins
        at ``initial`` calls and stays between ``least`` and ``most``.
        """
        if not 1 <= least <= initial <= most:
            raise ValueError("a limit needs 1 <= least <= initial <= most")
        return RemoteLimit(self._engine, name, LimitBounds(initial=initial, least=least, most=most))

    def priority(self, priority: Priority) -> Callable[[Function], Function]:
        """Give an endpoint's model calls this priority by default; put it directly above the function."""
        if priority not in PRIORITIES:
            raise ValueError(f"priority is one of {', '.join(PRIORITIES)}, not {priority!r}")

        def mark(endpoint: Function) -> Function:
            endpoint.asgi_mlperf_priority = priority  # type: ignore[attr-defined] # functions take attributes
            return endpoint

        return mark

    @overload
    def batched(
        self, func: Callable[[list[Item]], Results[Result]], /, **options: Unpack[BatchedKeywords]
    ) -> Batched[Item, Result]: ...
    @overload
    def batched(
        self, func: Callable[[list[Item]], Awaitable[Results[Result]]], /, **options: Unpack[BatchedKeywords]
    ) -> Batched[Item, Result]: ...
    @overload
    def batched(
        self,
        func: Callable[[list[Item]], Iterator[Results[Result]] | AsyncIterator[Results[Result]]],
        /,
        **options: Unpack[BatchedKeywords],
    ) -> BatchedStream[Item, Result]: ...
    @overload
    def batched(
        self,
        *,
        collate: Callable[[list[Item]], Collated],
        split: Callable[[Output], Results[Result]],
        **options: Unpack[BatchedKeywords],
    ) -> SplitDecorator[Item, Collated, Output, Result]: ...
    @overload
    def batched(
        self, *, collate: Callable[[list[Item]], Collated], **options: Unpack[BatchedKeywords]
    ) -> CollatedDecorator[Item, Collated]: ...
    @overload
    def batched(
        self, *, split: Callable[[Output], Results[Result]], **options: Unpack[BatchedKeywords]
    ) -> SplitDecorator[Any, list[Any], Output, Result]: ...
    @overload
    def batched(self, **options: Unpack[BatchedKeywords]) -> BatchedDecorator: ...
    def batched(
        self,
        func: Any = None,
        *,
        max_size: int | None = None,
        pool: InferencePool | None = None,
        executor: ExecutorName | None = None,
        key: Callable[[Any], Hashable] | None = None,
        cost: Callable[[Any], float] | None = None,
        max_cost: float | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        split: Callable[[Any], Any] | None = None,
        retry: Retry | None = None,
    ) -> Any:
        """Turn a function of a list into one of a single item that is run in batches.

        The function takes a list of items and returns one result per item, in order: a list, a tuple, an
        array. While there is no place to run, items gather; a free place takes those that wait, at most
        ``max_size`` (default ``ASGI_MLPERF_BATCHING__MAX_SIZE``). Nothing waits for a timer. What could not
        be done before its deadline is not begun, and a batch is cut so that all its items make theirs.

        An exception returned in place of a result is raised to that item's caller alone; a raised one to
        every caller of the batch, with a note that says so. ``retry="bisect"``, for functions that may be
        called again with the same items, then tries the halves, until what raises is alone.

        ``executor`` is where batches run: ``"thread"``, the inference threads of ``pool``, else the default
        ones, several batches at once; ``"inline"``, on the event loop, for functions of well under a
        millisecond; ``"auto"`` (default ``ASGI_MLPERF_BATCHING__EXECUTOR``), inline while batches take less
        than ``ASGI_MLPERF_BATCHING__INLINE_BUDGET_MS``, as measured on threads first, and are not full, or
        the worker has no CPU besides the event loop's. A function that calls
        back to the event loop (``anyio.from_thread``) needs ``"thread"``. Coroutine functions run on the
        loop as tasks.

        ``key(item)`` says what may share a batch: items of equal keys, which take turns. ``cost(item)`` and
        ``max_cost`` bound a padded batch: the largest cost times the number of items; a dearer item is
        refused with ``BatchError``. Both are called on the event loop for each item, and their exceptions
        are the caller's. Items of a key are begun in the order of their arrival.

        ``collate`` makes of the list what the function takes (``numpy.stack``), ``split`` makes of what it
        returns one result per item; without it, arrays and tensors are split by rows. They run where the
        function does.

        A generator function yields lists of one chunk per item, and ``async for chunk in predict(item)``
        takes them as they come; an exception in place of a chunk ends that item's stream, ``StopIteration``
        without an error. When ``ASGI_MLPERF_BATCHING__STREAM_CHUNKS`` wait for one caller, the batch waits
        for it; a caller that then takes nothing for ``ASGI_MLPERF_BATCHING__STALL_MS`` gets a ``BatchError``.
        """
        settings = self.settings.batching
        options = BatchOptions(
            max_size=settings.max_size if max_size is None else max_size,
            pool=DEFAULT_POOL if pool is None else pool.name,
            executor=executor,
            default_executor=settings.executor,
            inline_budget_s=settings.inline_budget_ms / 1000,
            stream_chunks=settings.stream_chunks,
            stall_s=settings.stall_ms / 1000,
            key=key,
            cost=cost,
            max_cost=max_cost,
            collate=collate,
            split=split,
            retry=retry,
        )
        if func is None:
            return BatchedDecorator(self._engine, options)
        return declared(self._engine, func, options)

    def warmup(self, func: Function) -> Function:
        """Call ``func`` at start-up after the app's lifespan, before the heap is frozen and traffic comes.

        A plain function runs on an inference thread, a coroutine function on the event loop. A failure
        stops the start. Usable as a decorator.
        """
        self._warm_ups.append(func)
        return func

    @overload
    def check(self, func: Function, *, name: str | None = None, timeout: float | None = None) -> Function: ...
    @overload
    def check(
        self, *, name: str | None = None, timeout: float | None = None
    ) -> Callable[[Function], Function]: ...
    def check(self, func: Any = None, *, name: str | None = None, timeout: float | None = None) -> Any:
        """Ask ``func``, plain or a coroutine function, at ``/readyz`` whether the app can take requests.

        It may return None or True, or else the reason why not: a text or False; an error is a reason too,
        and so is no answer within ``timeout`` seconds (default
        ``ASGI_MLPERF_HEALTH__CHECK_TIMEOUT_MS``). Checks run side by side, plain functions in threads of
        their own, and their answers are kept for ``ASGI_MLPERF_HEALTH__CHECK_CACHE_MS``. Liveness does not
        depend on them: a restart does not mend what is elsewhere. Usable as a decorator. Raises
        ``ValueError`` for a name that is taken.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"a check's timeout is seconds above 0, not {timeout}")

        def declare(func: Any) -> Any:
            named = name or name_of(func).rpartition(".")[2]
            if any(check.name == named for check in self._checks):
                raise ValueError(f"there is a check {named!r} already; give this one a name of its own")
            self._checks.append(Check(named, func, is_coroutine_function(func), timeout))
            return func

        return declare if func is None else declare(func)

    def serving(self) -> Serving | None:
        """Return what the middleware works with on the running event loop, None while nothing runs."""
        loop = _get_running_loop()
        serving = self.servings.get(loop)
        if serving is None and loop is not None and self.settings.enabled and not self._warned:
            self._warned = True
            log.warning("asgi-mlperf is installed, but its lifespan is not running: %s", _FIX)
        return serving

    def _engine(self) -> Engine | None:
        """Return what runs calls on this event loop, None where a stock app is asked for."""
        loop: Any = _get_running_loop()
        engine = self._publisher.engines.get(loop)
        if engine is None and self.settings.enabled and loop is not None:
            raise NotRunning(f"asgi-mlperf's lifespan is not running: {_FIX}")
        return engine

    @asynccontextmanager
    async def _around(self, own: Lifespan, app: Any) -> AsyncIterator[Any]:
        loop = _get_running_loop()
        if loop in self._started:
            async with own(app) as state:
                yield state
        elif not self.settings.enabled or loop is None:
            if self.settings.enabled:
                log.warning("asgi-mlperf needs asyncio or uvloop; under trio the app runs as if without it")
            async with own(app) as state, warmed_up_stock(self._warm_ups):
                yield state
        else:
            if not self.has_middleware:
                log.warning(
                    "asgi-mlperf runs without its middleware: app.add_middleware(PerfMiddleware, ...)"
                )
            self._started.add(loop)
            try:
                started = running(
                    self.settings, self._pools, app, own, self._warm_ups, self._checks, self._publisher
                )
                async with started as state:
                    yield state
            finally:
                self._started.discard(loop)
