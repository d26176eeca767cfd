"""One batch: a place in the pool's queue, then the items that it took, then their results."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from asgi_mlperf.inference.deadlines import clock
from asgi_mlperf.inference.results import errors_of
from asgi_mlperf.inference.work import Seat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asgi_mlperf.inference.backlog import Item
    from asgi_mlperf.inference.batching import Batcher
    from asgi_mlperf.inference.executors import Outcome
    from asgi_mlperf.inference.placement import Meter


class Batch:
    """One place in the pool's queue; which items it runs is decided when its slot is there."""

    def __init__(self, batcher: Batcher, *, queued_at: float, level: int, items: list[Item]) -> None:
        """Ask for a place for ``batcher``'s function: for ``items``, else for what waits then."""
        self.name = batcher.name
        self.deadline = math.inf  # each item has its own
        self.queued_at = queued_at
        self.level = level
        self.context = batcher.context.copy()
        self.service = batcher.service
        self.seat = Seat(batcher.pool.name)
        self.inline = False
        self._batcher = batcher
        self._items = items
        self._is_retry = bool(items)
        self._size = 0.0
        self._waits: list[float] = []
        self._started = 0.0
        self._meter: Meter | None = None

    def inline_room(self) -> float:
        """Return how large it may be on the event loop; what failed before uses threads where it can."""
        try:
            return self._batcher.room(is_retry=self._is_retry)
        except Exception as error:  # noqa: BLE001 - told, and a thread serves as well
            self._batcher.crashed(error)
            return 0.0

    def begin(self, now: float, room: float) -> Callable[[], Any] | None:
        """Take the items that wait now."""
        try:
            return self._begin(now, room)
        except Exception as error:  # noqa: BLE001 - supervised: the callers and the batcher are told
            self._settle_all(self._batcher.crashed(error))
            return None

    def waits(self) -> Sequence[float]:
        """Return the seconds that each item waited."""
        return self._waits

    def finish(self, outcome: Outcome) -> None:
        """Give each caller its own result or its own error."""
        try:
            if not self.inline:  # the next one has its thread while the results of this one go out
                self._batcher.gathering.ended(self._started)
            self._finish(outcome)
        except Exception as error:  # noqa: BLE001 - as above
            self._settle_all(self._batcher.crashed(error))

    def fail(self, error: Exception) -> None:
        """Give the error to the callers of this batch, or of the one that it would have become."""
        if self._items:
            self._settle_all(error)
        else:
            self._batcher.fail_waiting(error)

    def job(self, values: list[Any]) -> Callable[[], Any]:
        """Return what is run."""
        return partial(_call, self._batcher.compute, values, self.seat)

    def settle(self, items: list[Item], results: Any) -> None:
        """Give each item its result, or the error that was returned in its place."""
        for item, result in zip(items, results, strict=True):
            if isinstance(result, BaseException):
                item.settle(None, result)
            else:
                item.settle(result, None)

    def _begin(self, now: float, room: float) -> Callable[[], Any] | None:
        self._started = now
        self.inline = room > 0
        if self._is_retry:
            self._items = [item for item in self._items if item.wanted]
            self._size = len(self._items) * max((item.cost for item in self._items), default=0.0)
        else:
            self._size = self._batcher.take(now, room, self._items)
        return self._metered_job() if self._items else None

    def _metered_job(self) -> Callable[[], Any]:
        self._waits = self._batcher.note(self._started, self._items, self._size, inline=self.inline)
        self.seat.deadline = max([item.deadline for item in self._items])
        job = self.job([item.value for item in self._items])
        if self._batcher.placement.metered:
            self._meter = self._batcher.placement.meter(self._size)
            job = partial(_metered, job, self._meter)
        if not self.inline:
            self._batcher.gathering.began(self._started)
        return job

    def _finish(self, outcome: Outcome) -> None:
        items, error = self._items, outcome.error
        self._batcher.learn(self._size, clock() - self._started, self._meter, inline=self.inline)
        if error is None:
            self.settle(items, outcome.result)
        elif len(items) > 1 and self._batcher.retries(error):
            middle = len(items) // 2
            self._batcher.retry(items[:middle], self.level)
            self._batcher.retry(items[middle:], self.level)
        else:
            self._settle_all(error)

    def _settle_all(self, error: BaseException) -> None:
        for item, own in zip(self._items, errors_of(error, len(self._items), self.name), strict=True):
            item.settle(None, own)


def _call(compute: Callable[[list[Any]], Any], values: list[Any], seat: Seat) -> Any:
    seat.take()
    return compute(values)


def _metered(job: Callable[[], Any], meter: Meter) -> Any:
    meter.start()
    try:
        return job()
    finally:
        meter.stop()
