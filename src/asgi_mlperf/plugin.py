"""The facade: what an app holds, declares its model functions on, and is wrapped by."""

from __future__ import annotations

import asyncio
import functools
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, TypeVarTuple, overload

from starlette.concurrency import run_in_threadpool

from asgi_mlperf.exceptions import NotRunning
from asgi_mlperf.inference.batching import is_coroutine_function, results_of
from asgi_mlperf.lifespans import Lifespan, no_lifespan, normalized, on_event_lifespan
from asgi_mlperf.middleware import PerfMiddleware
from asgi_mlperf.runtime import Publisher, Runtime, running
from asgi_mlperf.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from starlette.applications import Starlette

    from asgi_mlperf.hooks import Serving

log = logging.getLogger("asgi_mlperf")

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
WarmUp = TypeVar("WarmUp", bound="Callable[[], Any]")
Arguments = TypeVarTuple("Arguments")


class Results(Protocol[Result_co]):
    """What a batched function returns: a list, a tuple, an array or a tensor, one result per item."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Result_co: ...


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
        self._warm_ups: list[Callable[[], Any]] = []
        self._warned = False

    def lifespan(self, app: Any) -> AbstractAsyncContextManager[Any]:
        """Run the plugin around an app without a lifespan of its own: ``FastAPI(lifespan=plugin.lifespan)``.

        FastAPI's ``on_event`` handlers, which it skips when it is given a lifespan, run inside.
        """
        return self.wrap(on_event_lifespan)(app)

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
        installed = any(middleware.kwargs.get("plugin") is self for middleware in app.user_middleware)
        if installed or not self.settings.enabled:
            return
        app.add_middleware(PerfMiddleware, plugin=self)
        router.lifespan_context = self.wrap(router.lifespan_context)

    async def run(
        self,
        func: Callable[[*Arguments], Result],
        *args: *Arguments,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline that reaches the queue, not only the await
    ) -> Result:
        """Call ``func(*args)`` on one of the bounded inference threads and return its result.

        Context variables reach ``func``; its exception is raised here. ``timeout`` is seconds from now,
        queue included (default ``ASGI_MLPERF_POOL__TIMEOUT_MS`` once the app has started, before that
        none); ``math.inf`` switches it off. Once it passes, ``DeadlineExceeded`` (504) is raised and work
        still waiting is never started; work already running keeps its thread until it ends. Raises
        ``Overloaded`` (503) when the queue is full or too long for the deadline, and ``NotRunning``
        outside the lifespan.
        """
        runtime = self._runtime()
        if runtime is None:
            return await run_in_threadpool(func, *args)
        result: Result = await runtime.pool.run(func, args, timeout)
        return result

    @overload
    def batched(
        self, func: Callable[[list[Item]], Results[Result]], *, max_size: int | None = None
    ) -> Batched[Item, Result]: ...
    @overload
    def batched(
        self, func: Callable[[list[Item]], Awaitable[Results[Result]]], *, max_size: int | None = None
    ) -> Batched[Item, Result]: ...
    @overload
    def batched(self, *, max_size: int | None = None) -> _Decorator: ...
    def batched(self, func: Any = None, *, max_size: int | None = None) -> Any:
        """Turn a function of a list into one of a single item that is run in batches.

        The function takes a list of items and returns one result per item, in order: a list, a tuple, an
        array. While every inference thread is busy items gather; a free thread takes those that wait, at
        most ``max_size`` (default ``ASGI_MLPERF_BATCHING__MAX_SIZE``). Nothing waits for a timer. An
        exception returned in place of a result is raised to that item's caller alone; a raised one to
        every caller of the batch. Several batches may run at once, in different threads.
        """
        size = self.settings.batching.max_size if max_size is None else max_size
        if size < 1:
            raise ValueError(f"max_size is the number of items in a batch, at least 1, not {size}")
        if func is not None:
            return Batched(self, func, size)
        return _Decorator(self, size)

    def warmup(self, func: WarmUp) -> WarmUp:
        """Call ``func`` at start-up after the app's lifespan, before the heap is frozen and traffic comes.

        A plain function runs on an inference thread, a coroutine function on the event loop. A failure
        stops the start. Usable as a decorator.
        """
        self._warm_ups.append(func)
        return func

    def serving(self) -> Serving | None:
        """Return what the middleware works with on the running event loop, None while nothing runs."""
        serving = self._publisher.servings.get(_running_loop())
        if serving is None and self.settings.enabled and not self._warned and _running_loop() is not None:
            self._warned = True
            log.warning("asgi-mlperf is installed, but its lifespan did not run: %s", _FIX)
        return serving

    def _runtime(self) -> Runtime | None:
        """Return the runtime of this event loop, None where a stock app is asked for."""
        loop = _running_loop()
        runtime = self._publisher.runtimes.get(loop)
        if runtime is None and self.settings.enabled and loop is not None:
            raise NotRunning(f"asgi-mlperf's lifespan is not running: {_FIX}")
        return runtime

    @asynccontextmanager
    async def _around(self, own: Lifespan, app: Any) -> AsyncIterator[Any]:
        loop = _running_loop()
        if loop is None:
            log.warning(
                "asgi-mlperf needs asyncio or uvloop; on this event loop the app runs as if without it"
            )
        if not self.settings.enabled or loop is None or loop in self._publisher.runtimes:
            async with own(app) as state:
                yield state
            return
        async with running(self.settings, app, own, self._warm_ups, self._publisher) as state:
            yield state


class Batched(Generic[Item, Result]):
    """A batched function: ``await`` it with one item for that item's result.

    ``timeout`` is as in ``Plugin.run``, for this item. The plain function is ``__wrapped__``.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[[list[Item]], Any]

    def __init__(self, plugin: Plugin, func: Callable[[list[Item]], Any], max_size: int) -> None:
        """Declare; nothing runs before the plugin's lifespan."""
        self._plugin = plugin
        self._func = func
        self._is_coroutine_function = is_coroutine_function(func)
        self.max_size = max_size
        functools.update_wrapper(self, func)

    async def __call__(
        self,
        item: Item,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline that reaches the queue, not only the await
    ) -> Result:
        """Return the result of ``item``, computed together with what else waits."""
        runtime = self._plugin._runtime()  # noqa: SLF001 - the plugin's own other half
        if runtime is None:
            return await self._alone(item)
        result: Result = await runtime.batcher(self._func, self.max_size).submit(item, timeout)
        return result

    async def _alone(self, item: Item) -> Result:
        if self._is_coroutine_function:
            results = await self._func([item])
        else:
            results = await run_in_threadpool(self._func, [item])
        result: Any = results_of(results, 1, self._func)[0]
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return] # results_of promises one result per item


class _Decorator:
    """``plugin.batched(...)`` before it knows its function; typed for plain and coroutine functions."""

    def __init__(self, plugin: Plugin, max_size: int) -> None:
        self._plugin = plugin
        self._max_size = max_size

    @overload
    def __call__(self, func: Callable[[list[Item]], Results[Result]], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self, func: Callable[[list[Item]], Awaitable[Results[Result]]], /
    ) -> Batched[Item, Result]: ...
    def __call__(self, func: Any, /) -> Any:
        return Batched(self._plugin, func, self._max_size)


def _running_loop() -> Any:
    """Return this thread's asyncio loop, None under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
