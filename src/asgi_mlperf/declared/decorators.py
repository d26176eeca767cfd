"""``plugin.batched(...)`` before it knows its function: typed for every kind of function it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, overload

from asgi_mlperf.declared.batched import Batched, BatchedStream, Item, Result, Results
from asgi_mlperf.inference.options import is_generator_function

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator

    from asgi_mlperf.declared.pools import InferencePool
    from asgi_mlperf.inference.engine import Engine
    from asgi_mlperf.inference.options import BatchOptions, ExecutorName, Retry

Collated = TypeVar("Collated")
Output = TypeVar("Output")


class BatchedKeywords(TypedDict, total=False):
    """What ``Plugin.batched`` takes besides ``collate`` and ``split``."""

    max_size: int | None
    pool: InferencePool | None
    executor: ExecutorName | None
    key: Callable[[Any], Hashable] | None
    cost: Callable[[Any], float] | None
    max_cost: float | None
    retry: Retry | None


def declared(find_engine: Callable[[], Engine | None], func: Any, options: BatchOptions) -> Any:
    """Declare ``func`` as batched; raise ``ValueError`` for options that it cannot have."""
    options.check(func)
    return (BatchedStream if is_generator_function(func) else Batched)(find_engine, func, options)


class _Decorator:
    def __init__(self, find_engine: Callable[[], Engine | None], options: BatchOptions) -> None:
        """Keep the options."""
        self._find_engine = find_engine
        self._options = options

    def _declare(self, func: Any) -> Any:
        return declared(self._find_engine, func, self._options)


class BatchedDecorator(_Decorator):
    """For functions of a list."""

    @overload
    def __call__(self, func: Callable[[list[Item]], Results[Result]], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self, func: Callable[[list[Item]], Awaitable[Results[Result]]], /
    ) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self,
        func: Callable[[list[Item]], Iterator[Results[Result]] | AsyncIterator[Results[Result]]],
        /,
    ) -> BatchedStream[Item, Result]: ...
    @overload
    def __call__(self, func: Callable[[Any, list[Item]], Results[Result]], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self, func: Callable[[Any, list[Item]], Awaitable[Results[Result]]], /
    ) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self,
        func: Callable[[Any, list[Item]], Iterator[Results[Result]] | AsyncIterator[Results[Result]]],
        /,
    ) -> BatchedStream[Item, Result]: ...
    def __call__(self, func: Any, /) -> Any:
        """Declare ``func`` as batched."""
        return self._declare(func)


class CollatedDecorator(_Decorator, Generic[Item, Collated]):
    """For functions of what ``collate`` makes of a list."""

    @overload
    def __call__(self, func: Callable[[Collated], Results[Result]], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self, func: Callable[[Collated], Awaitable[Results[Result]]], /
    ) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self, func: Callable[[Collated], Iterator[Results[Result]] | AsyncIterator[Results[Result]]], /
    ) -> BatchedStream[Item, Result]: ...
    @overload
    def __call__(self, func: Callable[[Any, Collated], Results[Result]], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(
        self, func: Callable[[Any, Collated], Awaitable[Results[Result]]], /
    ) -> Batched[Item, Result]: ...
    def __call__(self, func: Any, /) -> Any:
        """Declare ``func`` as batched."""
        return self._declare(func)


class SplitDecorator(_Decorator, Generic[Item, Collated, Output, Result]):
    """For functions of what ``collate`` makes, if it is given, whose output ``split`` takes apart."""

    @overload
    def __call__(self, func: Callable[[Collated], Output], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(self, func: Callable[[Collated], Awaitable[Output]], /) -> Batched[Item, Result]: ...
    @overload
    def __call__(self, func: Callable[[Any, Collated], Output], /) -> Batched[Item, Result]: ...
    def __call__(self, func: Any, /) -> Any:
        """Declare ``func`` as batched."""
        return self._declare(func)
