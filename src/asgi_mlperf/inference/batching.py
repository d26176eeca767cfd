"""Batches formed from what waits while the model is busy: a slot first, then whatever is there for it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from asgi_mlperf.exceptions import BatchError, DeadlineExceeded, Overloaded
from asgi_mlperf.inference.deadlines import clock, current_deadline
from asgi_mlperf.inference.gate import level_of
from asgi_mlperf.inference.waiting import Waiter, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asgi_mlperf.hooks import Observer
    from asgi_mlperf.inference.executors import Outcome
    from asgi_mlperf.inference.pool import Pool


class BatchingSettings(BaseModel):
    """Defaults of ``plugin.batched``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: int = Field(default=32, ge=1, description="items that one batch may hold")


class Item(Waiter):
    """One item, waited for by one caller."""

    __slots__ = ("value",)

    def __init__(self, value: Any, *, name: str, queued_at: float, deadline: float) -> None:
        """Wait for the result of ``value``."""
        super().__init__(name, queued_at=queued_at, deadline=deadline)
        self.value = value


class Batch:
    """One place in the pool's queue; which items it runs is decided when its slot is there."""

    def __init__(self, batcher: Batcher, *, queued_at: float, level: int) -> None:
        """Ask for a place for ``batcher``'s function."""
        self.name = batcher.name
        self.deadline = math.inf  # each item has its own
        self.queued_at = queued_at
        self.level = level
        self.context = batcher.context.copy()
        self.thread: int | None = None
        self._batcher = batcher
        self._items: list[Item] = []

    def begin(self, now: float) -> Callable[[], Any] | None:
        """Take the items that wait now."""
        self._items = self._batcher.take(now)
        return self._job if self._items else None

    def waited(self, now: float) -> Iterable[float]:
        """Return the wait of each item."""
        return [now - item.queued_at for item in self._items]

    def finish(self, outcome: Outcome) -> None:
        """Give each caller its own result or its own error."""
        if outcome.error is not None:
            self._settle_all(outcome.error)
            return
        try:
            results = results_of(outcome.result, len(self._items), self._batcher.func)
        except BatchError as error:
            self._settle_all(error)
            return
        for item, result in zip(self._items, results, strict=True):
            if isinstance(result, BaseException):
                item.settle(None, result)
            else:
                item.settle(result, None)

    def fail(self, error: Exception) -> None:
        """Give the error to every caller, also to those who waited for the next batch."""
        self._settle_all(error)
        self._batcher.fail_waiting(error)

    def _job(self) -> Any:
        self.thread = threading.get_ident()
        current_deadline.set(max(item.deadline for item in self._items))
        return self._batcher.func([item.value for item in self._items])

    def _settle_all(self, error: BaseException) -> None:
        for item in self._items:
            item.settle(None, error)


class Batcher:
    """Feeds one batched function: while every slot is busy items gather, a free slot takes them.

    At most one place in the pool's queue is held at a time, so a busy function does not crowd out
    others; batches of one function may run in several slots at once.
    """

    def __init__(
        self, func: Callable[[list[Any]], Any], *, max_size: int, pool: Pool, sizes: Observer
    ) -> None:
        """``sizes`` observes the size of each batch."""
        self.func = func
        self.name = name_of(func)
        self.context = contextvars.copy_context()
        self._max_size = max_size
        self._pool = pool
        self._sizes = sizes
        self._waiting: OrderedDict[int, Item] = OrderedDict()
        self._place: Batch | None = None

    async def submit(self, value: Any, timeout_s: float | None) -> Any:
        """Wait for the result of one item."""
        now = clock()
        deadline = self._pool.deadline(now, timeout_s, self.name)
        self._pool.refuse_beyond_queue(len(self._waiting))
        item = Item(value, name=self.name, queued_at=now, deadline=deadline)
        self._waiting[id(item)] = item
        self._ask_for_slot(now)
        try:
            return await self._pool.result(item)
        finally:
            self._waiting.pop(id(item), None)

    def take(self, now: float) -> list[Item]:
        """Form a batch from the oldest items that somebody still waits for."""
        self._place = None
        taken: list[Item] = []
        while self._waiting and len(taken) < self._max_size:
            _, item = self._waiting.popitem(last=False)
            if item.deadline <= now:
                item.settle(None, DeadlineExceeded(f"{self.name} was not begun before the item's deadline"))
            if not item.future.done():
                taken.append(item)
        if taken:
            self._sizes.observe(len(taken))
        if self._waiting:
            self._ask_for_slot(now)
        return taken

    def fail_waiting(self, error: Exception) -> None:
        """Give every waiting item the same error: there will be no slot."""
        self._place = None
        while self._waiting:
            _, item = self._waiting.popitem(last=False)
            item.settle(None, error)

    def _ask_for_slot(self, now: float) -> None:
        if self._place is None:
            self._place = Batch(self, queued_at=now, level=level_of(None))
            # A step later, so that items that arrive together share a batch.
            asyncio.get_running_loop().call_soon(self._submit, self._place)

    def _submit(self, place: Batch) -> None:
        try:
            self._pool.submit(place, bounded=False)
        except Overloaded as error:
            place.fail(error)


def results_of(results: Any, count: int, func: Callable[..., Any]) -> Sequence[Any]:
    """Check that ``results`` is one result per item, in order: a list, a tuple, an array or a tensor."""
    name = name_of(func)
    if isinstance(results, str | bytes | bytearray) or not (
        hasattr(results, "__len__") and hasattr(results, "__getitem__") and not hasattr(results, "keys")
    ):
        raise BatchError(
            f"{name} returned {type(results).__name__}; a batched function takes a list and returns a list "
            f"of the same length"
        )
    if len(results) != count:
        raise BatchError(
            f"{name} returned {len(results)} results for {count} items; a batched function returns one "
            f"result per item, in order"
        )
    checked: Sequence[Any] = results
    return checked


def is_coroutine_function(func: Callable[..., Any]) -> bool:
    """Say whether calling ``func`` gives a coroutine, also for objects with an async ``__call__``."""
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004
