"""Batches formed from what waits while the model is busy: a slot first, then whatever is there for it."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from asgi_mlperf.exceptions import BatchError, DeadlineExceeded, Overloaded
from asgi_mlperf.inference.deadlines import clock
from asgi_mlperf.inference.gate import level_of
from asgi_mlperf.inference.waiting import Waiter, name_of
from asgi_mlperf.inference.work import Seat

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterable

    from asgi_mlperf.hooks import Observer
    from asgi_mlperf.inference.admission import ServiceTime
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

    def __init__(self, batcher: Batcher, *, queued_at: float, level: int, pool: str) -> None:
        """Ask for a place for ``batcher``'s function."""
        self.name = batcher.name
        self.deadline = math.inf  # each item has its own
        self.queued_at = queued_at
        self.level = level
        self.context = batcher.context.copy()
        self.service = batcher.service
        self.seat = Seat(pool)
        self._batcher = batcher
        self._items: list[Item] = []

    def begin(self, now: float) -> Callable[[], Any] | None:
        """Take the items that wait now."""
        self._items = self._batcher.take(now)
        if not self._items:
            return None
        for item in self._items:
            item.started_at, item.batch_size = now, len(self._items)
        self.seat.deadline = max(item.deadline for item in self._items)
        return partial(_call, self._batcher.func, [item.value for item in self._items], self.seat)

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
        """Give the error to the callers of this batch, or of the one that it would have become."""
        if self._items:
            self._settle_all(error)
        else:
            self._batcher.fail_waiting(error)

    def _settle_all(self, error: BaseException) -> None:
        alone = len(self._items) == 1
        for item in self._items:
            item.settle(None, error if alone else copy_of(error))


class Batcher:
    """Feeds one batched function: while every slot is busy items gather, a free slot takes them.

    At most one place in the pool's queue is held at a time, so a busy function does not crowd out
    others; batches of one function may run in several slots at once.
    """

    def __init__(
        self,
        func: Callable[[list[Any]], Any],
        *,
        max_size: int,
        pool: Pool,
        sizes: Observer,
        context: contextvars.Context,
    ) -> None:
        """Batches run with ``context``, not with a caller's; ``sizes`` observes how large they are."""
        self.func = func
        self.name = name_of(func)
        self.context = context
        self._max_size = max_size
        self._pool = pool
        self._sizes = sizes
        self._waiting: OrderedDict[int, Item] = OrderedDict()
        self._place: Batch | None = None

    @property
    def service(self) -> ServiceTime:
        """What a batch takes, as the pool knows it: it forgets what it learnt before the app served."""
        return self._pool.service(self.name)

    async def submit(self, value: Any, timeout_s: float | None) -> Any:
        """Wait for the result of one item."""
        now = clock()
        self._pool.refuse_own(self.name)
        deadline = self._pool.deadline(now, timeout_s, self.name)
        self._pool.check(
            waiting=len(self._waiting), batch=self._max_size, deadline=deadline, service=self.service
        )
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
            if not item.future.done() and not item.left:
                taken.append(item)
        if taken:
            self._sizes.observe(len(taken))
        if self._waiting:
            self._ask_for_slot(now)
        return taken

    def fail_waiting(self, error: Exception) -> None:
        """Give every waiting item the error: there will be no slot."""
        self._place = None
        while self._waiting:
            _, item = self._waiting.popitem(last=False)
            item.settle(None, copy_of(error))

    def _ask_for_slot(self, now: float) -> None:
        if self._place is None:
            self._place = Batch(self, queued_at=now, level=level_of(None), pool=self._pool.name)
            # A step later, so that items that arrive together share a batch.
            asyncio.get_running_loop().call_soon(self._submit, self._place)

    def _submit(self, place: Batch) -> None:
        try:
            self._pool.submit(place, bounded=False)
        except Overloaded as error:
            place.fail(error)


def _call(func: Callable[[list[Any]], Any], values: list[Any], seat: Seat) -> Any:
    seat.take()
    return func(values)


def copy_of(error: BaseException) -> BaseException:
    """Return an error of one's own where it can be had: tracebacks and notes must not cross callers."""
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - not every error can be made again from its arguments
        return error
    if type(own) is not type(error):
        return error
    own.__cause__, own.__suppress_context__ = error.__cause__, error.__suppress_context__
    return own.with_traceback(error.__traceback__)


def results_of(results: Any, count: int, func: Callable[..., Any]) -> list[Any]:
    """Check that ``results`` is one result per item, in order: a list, a tuple, an array or a tensor."""
    name = name_of(func)
    if inspect.iscoroutine(results):
        results.close()
    is_sequence = hasattr(results, "__len__") and hasattr(results, "__getitem__")
    if not is_sequence or isinstance(results, str | bytes | bytearray) or hasattr(results, "keys"):
        raise BatchError(
            f"{name} returned {type(results).__name__}; a batched function takes a list and returns a list "
            f"of the same length"
        )
    try:
        checked = list(results)
    except Exception as error:
        raise BatchError(
            f"{name} returned a {type(results).__name__} that cannot be read: {error}"
        ) from error
    if len(checked) != count:
        raise BatchError(
            f"{name} returned {len(checked)} results for {count} items; a batched function returns one "
            f"result per item, in order"
        )
    return checked


def is_coroutine_function(func: Callable[..., Any]) -> bool:
    """Say whether calling ``func`` gives a coroutine, also for objects with an async ``__call__``."""
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004
