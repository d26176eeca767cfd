"""Batches formed from what waits while the model is busy: a slot first, then whatever is there for it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from asgi_mlperf.exceptions import BatchError, DeadlineExceeded, Overloaded
from asgi_mlperf.inference.pool import name_of, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asgi_mlperf.hooks import Observer
    from asgi_mlperf.inference.executors import Outcome
    from asgi_mlperf.inference.pool import Pool


class BatchingSettings(BaseModel):
    """Defaults of ``plugin.batched``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: int = Field(default=32, ge=1, description="items that one batch may hold")


class Waiter:
    """One item, waited for by one caller."""

    __slots__ = ("deadline", "future", "item", "queued_at")

    def __init__(self, item: Any, *, queued_at: float, deadline: float) -> None:
        self.item = item
        self.queued_at = queued_at
        self.deadline = deadline
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Batch:
    """One place in the pool's queue; which items it runs is decided when its slot is there."""

    def __init__(self, batcher: Batcher, queued_at: float) -> None:
        self.deadline = math.inf  # each item has its own
        self.queued_at = queued_at
        self.level = 0
        self.context = batcher.context.copy()
        self._batcher = batcher
        self._waiters: list[Waiter] = []

    def begin(self, now: float) -> Callable[[], Any] | None:
        """Take the items that wait now."""
        self._waiters = self._batcher.take(now)
        if not self._waiters:
            return None
        self.queued_at = self._waiters[0].queued_at
        items = [waiter.item for waiter in self._waiters]
        func = self._batcher.func
        return lambda: func(items)

    def finish(self, outcome: Outcome) -> None:
        """Give each caller its own result or its own error."""
        if outcome.error is not None:
            self._fail(outcome.error)
            return
        try:
            results = results_of(outcome.result, len(self._waiters), self._batcher.func)
        except BatchError as error:
            self._fail(error)
            return
        for waiter, result in zip(self._waiters, results, strict=True):
            if isinstance(result, BaseException):
                settle(waiter.future, None, result)
            else:
                settle(waiter.future, result, None)

    def fail(self, error: Exception) -> None:
        """Give the error to every caller, also to those who waited for the next batch."""
        self._fail(error)
        self._batcher.fail_waiting(error)

    def _fail(self, error: BaseException) -> None:
        for waiter in self._waiters:
            settle(waiter.future, None, error)


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
        self.context = contextvars.copy_context()
        self._max_size = max_size
        self._pool = pool
        self._sizes = sizes
        self._waiting: OrderedDict[int, Waiter] = OrderedDict()
        self._place: Batch | None = None

    async def submit(self, item: Any, timeout_s: float | None) -> Any:
        """Wait for the result of one item."""
        now = self._pool.clock()
        patience = self._pool.patience_s(timeout_s)
        self._pool.refuse_if_late(len(self._waiting), now + patience)
        waiter = Waiter(item, queued_at=now, deadline=now + patience)
        self._waiting[id(waiter)] = waiter
        timer = None
        if patience != math.inf:
            timer = asyncio.get_running_loop().call_later(patience, self._expire, waiter)
        try:
            self._ask_for_slot(now)
            return await waiter.future
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.pop(id(waiter), None)

    def take(self, now: float) -> list[Waiter]:
        """Form a batch from the oldest items that somebody still waits for."""
        self._place = None
        taken: list[Waiter] = []
        while self._waiting and len(taken) < self._max_size:
            _, waiter = self._waiting.popitem(last=False)
            if waiter.future.done():
                continue
            if waiter.deadline <= now:
                self._expire(waiter)
                continue
            taken.append(waiter)
        if taken:
            self._sizes.observe(len(taken))
        if self._waiting:
            self._ask_for_slot(now)
        return taken

    def fail_waiting(self, error: Exception) -> None:
        """Give every waiting item the same error: there will be no slot."""
        self._place = None
        while self._waiting:
            _, waiter = self._waiting.popitem(last=False)
            settle(waiter.future, None, error)

    def _ask_for_slot(self, now: float) -> None:
        if self._place is None:
            self._place = Batch(self, now)
            # A step later, so that items that arrive together share a batch.
            asyncio.get_running_loop().call_soon(self._submit, self._place)

    def _submit(self, place: Batch) -> None:
        try:
            self._pool.submit(place, bounded=False)
        except Overloaded as error:
            place.fail(error)

    def _expire(self, waiter: Waiter) -> None:
        settle(
            waiter.future,
            None,
            DeadlineExceeded(f"{name_of(self.func)} did not finish before the deadline of this item"),
        )


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
