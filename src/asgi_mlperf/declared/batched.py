"""Batched functions, as an app holds and awaits them."""

from __future__ import annotations

import functools
import inspect
from contextlib import aclosing
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast
from weakref import WeakKeyDictionary, ref

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from asgi_mlperf.inference.options import runs_on_loop
from asgi_mlperf.inference.results import computing, results_of
from asgi_mlperf.inference.streams import StreamBatcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from asgi_mlperf.inference.batching import Batcher
    from asgi_mlperf.inference.engine import Engine
    from asgi_mlperf.inference.options import BatchOptions

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Results(Protocol[Result_co]):
    """What a batched function returns: a list, a tuple, an array or a tensor, one result per item."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Result_co: ...


def _nothing() -> None:
    """Stand for a reference to what is gone."""


class _Declared:
    """A function of a batch, and how it is to be batched; the plain function is ``__wrapped__``."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(
        self, find_engine: Callable[[], Engine | None], func: Callable[..., Any], options: BatchOptions
    ) -> None:
        """Declare; nothing runs before the plugin's lifespan."""
        self.options = options
        self._find_engine = find_engine
        self._func = func
        self._batchers: WeakKeyDictionary[Engine, Batcher] = WeakKeyDictionary()
        self._latest: tuple[Callable[[], Engine | None], Callable[[], Batcher | None]] = _nothing, _nothing
        self._attribute = getattr(func, "__name__", "")
        functools.update_wrapper(cast("Callable[..., Any]", self), func)

    @property
    def max_size(self) -> int:
        """Items that one batch may hold."""
        return self.options.max_size

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn under which name a class holds this."""
        self._attribute = name

    def __get__(self, instance: Any, owner: type | None = None) -> Self:
        """Return the batched method of ``instance``, the same one every time: its batches are its own."""
        if instance is None:
            return self
        bound = type(self)(self._find_engine, MethodType(self._func, instance), self.options)
        try:
            instance.__dict__[self._attribute] = bound
        except AttributeError:
            raise TypeError(
                f"{type(instance).__qualname__} has __slots__ and cannot keep its batched method "
                f"{self.__name__}: leave __slots__ out, or batch a function"
            ) from None
        return bound

    def _batcher(self, engine: Engine) -> Batcher:
        latest, batcher_of_latest = self._latest
        if latest() is engine and (batcher := batcher_of_latest()) is not None:
            return batcher
        found = self._batchers.get(engine)
        if found is None:
            found = self._batchers[engine] = engine.batcher(self._func, self.options)
        self._latest = ref(engine), ref(found)
        return found


class Batched(_Declared, Generic[Item, Result]):
    """A batched function: ``await`` it with one item for that item's result.

    ``timeout`` is as in ``Plugin.run``, for this item. The plain function is ``__wrapped__``.
    """

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
        waiter = self._batcher(engine).enter(item, timeout)
        with waiter:
            return await waiter.future  # type: ignore[no-any-return] # as the batched function has it

    async def _alone(self, item: Item) -> Result:
        compute = computing(self._func, self.options)
        if runs_on_loop(self._func):
            (result,) = await compute([item])
        else:
            (result,) = await run_in_threadpool(compute, [item])
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return] # one result per item, as was checked


class BatchedStream(_Declared, Generic[Item, Result]):
    """A batched generator function: ``async for`` over a call with one item gives that item's chunks.

    ``timeout`` is that of the first chunk. Chunks that are not taken yet are kept up to a bound, at which
    the batch waits, and its slot with it; a batch whose callers have all stopped is ended at its next step.
    A caller that calls the same pool between chunks of a long stream waits for the slot of its own stream:
    give one of them a pool of its own (``plugin.pool``).
    The plain function is ``__wrapped__``.
    """

    async def __call__(
        self,
        item: Item,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a deadline that reaches the queue, not only the await
    ) -> AsyncGenerator[Result, None]:
        """Yield the chunks of ``item``, computed together with what else waits."""
        engine = self._find_engine()
        if engine is None:
            stream = self._alone(item)
        else:
            batcher = self._batcher(engine)
            assert isinstance(batcher, StreamBatcher)  # noqa: S101 - as the engine makes it for a generator
            stream = batcher.stream(item, timeout)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _alone(self, item: Item) -> AsyncGenerator[Any, None]:
        options, func = self.options, self._func
        steps = func([item] if options.collate is None else options.collate([item]))
        async for step in steps if inspect.isasyncgen(steps) else iterate_in_threadpool(steps):
            (chunk,) = results_of(step if options.split is None else options.split(step), 1, func)
            if isinstance(chunk, StopIteration | StopAsyncIteration):
                return
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
