"""What an app declares on its plugin at import: batched functions, pools, limits. They work while it runs."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, TypeVarTuple, overload
from weakref import WeakKeyDictionary

from starlette.concurrency import run_in_threadpool

from asgi_mlperf.inference.batching import is_coroutine_function, results_of
from asgi_mlperf.inference.engine import DEFAULT_POOL, Engine, LimitBounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from asgi_mlperf.inference.batching import Batcher
    from asgi_mlperf.inference.limits import AdaptiveLimit

Priority = Literal["high", "normal", "low"]
Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Arguments = TypeVarTuple("Arguments")


class Results(Protocol[Result_co]):
    """What a batched function returns: a list, a tuple, an array or a tensor, one result per item."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Result_co: ...


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


class Batched(Generic[Item, Result]):
    """A batched function: ``await`` it with one item for that item's result.

    ``timeout`` is as in ``Plugin.run``, for this item. The plain function is ``__wrapped__``.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[[list[Item]], Any]

    def __init__(
        self,
        find_engine: Callable[[], Engine | None],
        func: Callable[[list[Item]], Any],
        *,
        max_size: int,
        pool: str,
    ) -> None:
        """Declare; nothing runs before the plugin's lifespan."""
        self.max_size = max_size
        self._find_engine = find_engine
        self._func = func
        self._pool = pool
        self._is_coroutine_function = is_coroutine_function(func)
        self._batchers: WeakKeyDictionary[Engine, Batcher] = WeakKeyDictionary()
        self._attribute = getattr(func, "__name__", "")
        functools.update_wrapper(self, func)

    async def __call__(
        self,
        item: Item,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline that reaches the queue, not only the await
    ) -> Result:
        """Return the result of ``item``, computed together with what else waits."""
        engine = self._find_engine()
        if engine is None:
            return await self._alone(item)
        batcher = self._batchers.get(engine)
        if batcher is None:
            batcher = engine.batcher(self._func, max_size=self.max_size, pool=self._pool)
            self._batchers[engine] = batcher
        result: Result = await batcher.submit(item, timeout)
        return result

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn under which name a class holds this."""
        self._attribute = name

    def __get__(self, instance: Any, owner: type | None = None) -> Batched[Item, Result]:
        """Return the batched method of ``instance``, the same one every time: its batches are its own."""
        if instance is None:
            return self
        bound: Batched[Item, Result] = Batched(
            self._find_engine, MethodType(self._func, instance), max_size=self.max_size, pool=self._pool
        )
        try:
            instance.__dict__[self._attribute] = bound
        except AttributeError:
            raise TypeError(
                f"{type(instance).__qualname__} has __slots__ and cannot keep its batched method "
                f"{self.__name__}: leave __slots__ out, or batch a function"
            ) from None
        return bound

    async def _alone(self, item: Item) -> Result:
        if self._is_coroutine_function:
            results = await self._func([item])
        else:
            results = await run_in_threadpool(self._func, [item])
        result: Any = results_of(results, 1, self._func)[0]
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return] # results_of promises one result per item


class BatchedDecorator:
    """``plugin.batched(...)`` before it knows its function; typed for plain and coroutine functions."""

    def __init__(self, find_engine: Callable[[], Engine | None], *, max_size: int, pool: str) -> None:
        """Keep the options."""
        self._find_engine = find_engine
        self._max_size = max_size
        self._pool = pool

    @overload
    def __call__(self, func: Callable[[list[Item]], Results[Result]], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self, func: Callable[[list[Item]], Awaitable[Results[Result]]], /
    ) -> Batched[Item, Result]: ...
    @overload
    def __call__(self, func: Callable[[Any, list[Item]], Results[Result]], /) -> Batched[Item, Result]: ...
    def __call__(self, func: Any, /) -> Any:
        """Declare ``func`` as batched."""
        return Batched(self._find_engine, func, max_size=self._max_size, pool=self._pool)


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
