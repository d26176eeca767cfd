"""Batches formed from what waits while the model is busy: a slot first, then whatever is there for it."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from asgi_mlperf.exceptions import BatchError
from asgi_mlperf.inference.backlog import Backlog, Item, Room
from asgi_mlperf.inference.batches import Batch
from asgi_mlperf.inference.costs import BatchCost
from asgi_mlperf.inference.deadlines import clock
from asgi_mlperf.inference.gathering import Gathering
from asgi_mlperf.inference.options import runs_on_loop
from asgi_mlperf.inference.results import computing, copy_of
from asgi_mlperf.inference.waiting import name_of

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Hashable

    from asgi_mlperf.hooks import BatchObservers
    from asgi_mlperf.inference.delays import ServiceTime
    from asgi_mlperf.inference.options import BatchOptions
    from asgi_mlperf.inference.placement import Meter, Placement
    from asgi_mlperf.inference.pool import Pool

log = logging.getLogger("asgi_mlperf")

_FIRST_RESTART_S = 0.1
_LONGEST_RESTART_S = 10.0


class Batcher:
    """Feeds one batched function: while every slot is busy items gather, a free slot takes them.

    At most one place in the pool's queue is held at a time, so a busy function does not crowd out
    others; batches of one function may run in several slots at once.
    """

    batch_type: type[Batch] = Batch
    item_type: type[Item] = Item

    def __init__(
        self,
        func: Callable[[Any], Any],
        options: BatchOptions,
        *,
        pool: Pool,
        placement: Placement,
        observers: BatchObservers,
        context: contextvars.Context,
    ) -> None:
        """Batches run with ``context``, not with a caller's, where ``placement`` says."""
        self.func = func
        self.name = name_of(func)
        self.context = context
        self.compute = computing(func, options)
        self.placement = placement
        self.down: str | None = None
        self.options = options
        self._is_plain = options.key is None and options.cost is None
        self.pool = pool
        self._observers = observers
        self._waiting = Backlog()
        self._cost = BatchCost()
        self.gathering = Gathering(self)
        self._ran_inline: bool | None = None
        self._elsewhere = "task" if runs_on_loop(func) else "thread"
        self._restart: asyncio.TimerHandle | None = None
        self._restart_s = _FIRST_RESTART_S

    @property
    def service(self) -> ServiceTime:
        """What a batch takes, as the pool knows it: it forgets what it learnt before the app served."""
        return self.pool.service(self.name)

    def enter(self, value: Any, timeout_s: float | None) -> Item:
        """Let one item wait; raise if it may not. Its result is to be awaited at once."""
        now = clock()
        pool, name, waiting = self.pool, self.name, self._waiting
        pool.refuse_own(name)
        deadline = pool.deadline(now, timeout_s, name)
        if self.down:
            raise pool.refusal("restarting")
        if not pool.surely_takes(waiting.count, self.options.max_size):
            pool.check(
                waiting=waiting.count,
                batch=self.options.max_size,
                deadline=deadline,
                service=self.service,
                most=self.placement.most_on_threads,
            )
        key, cost = (None, 1.0) if self._is_plain else self._labels(value)
        item = self.item_type(value, pool, name, now, deadline, key, cost)
        waiting.add(item)
        self.gathering.arrived(now)
        return item

    def room(self, *, is_retry: bool) -> float:
        """Return how large the next batch may be inline, 0 where it is to use a thread."""
        if is_retry:
            return 0.0 if self.placement.metered else self.placement.room(1.0, 1.0)
        return self.next_up()[0] if self._waiting.count else 0.0

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return self._waiting.count

    @property
    def largest(self) -> float:
        """The padded size that a batch may have."""
        return self.options.max_size if self.options.cost is None else self.options.budget

    def expected_s(self, size: float) -> float:
        """Seconds that a batch of ``size`` should take."""
        return self._cost.mean(size)

    def next_up(self) -> tuple[float, float]:
        """Return what may run inline of the next batch, and the size that it would have."""
        least, wanted = self._waiting.next_up(self.options.max_size)
        most = min(self.options.max_size * least, self.options.budget)
        wanted = min(wanted, most)
        return self.placement.room(least, wanted, is_full=wanted >= most), wanted

    def take(self, now: float, inline_size: float, items: list[Item]) -> float:
        """Move to ``items`` a batch of the oldest that somebody still waits for; return its padded size."""
        self.gathering.over()
        options, cost = self.options, self._cost
        ample_s, is_uniform = cost.likely(self.largest), options.cost is None
        room = Room(
            options.max_size, options.budget, inline_size or math.inf, cost.likely, ample_s, is_uniform
        )
        size, reason = self._waiting.take(now, room, items)
        if self._waiting.count:
            self.gathering.begin(now)
        if items:
            self._observers.closed(reason)
        else:
            cost.doubt()
        return size

    def note(self, now: float, items: list[Item], size: float, *, inline: bool) -> list[float]:
        """Measure a batch that begins; return the seconds that each of its items waited."""
        count = len(items)
        self._observers.size.observe(count)
        waits = [now - item.queued_at for item in items]
        self._observers.lingered(waits)
        if self.pool.observers.called is not None:
            for item in items:
                item.started_at, item.batch_size = now, count
        if self.options.cost is not None and size:
            self._observers.padding(1 - sum(item.cost for item in items) / size)
        if inline is not self._ran_inline:
            self._ran_inline = inline
            self._observers.executor("inline" if inline else self._elsewhere)
        return waits

    def learn(self, size: float, seconds: float, meter: Meter | None, *, inline: bool) -> None:
        """Learn what a batch took."""
        self._observers.run.observe(seconds)
        self._cost.observe(size, seconds)
        if meter is not None:
            self.placement.observe(size, meter, inline=inline)
        self._restart_s = _FIRST_RESTART_S

    def retries(self, error: BaseException) -> bool:
        """Say whether the items of a batch that raised ``error`` are tried again in smaller ones."""
        return (
            self.options.retry is not None
            and isinstance(error, Exception)
            and not isinstance(error, BatchError)
        )

    def retry(self, items: list[Item], level: int) -> None:
        """Run ``items`` as a batch of their own."""
        self.pool.announce()
        self.pool.submit_announced(self.batch_type(self, queued_at=clock(), level=level, items=items))

    def fail_waiting(self, error: Exception) -> None:
        """Give every waiting item the error: there will be no slot."""
        self.gathering.over()
        for item in self._waiting.clear():
            item.settle(None, copy_of(error))

    def crashed(self, error: Exception) -> BatchError:
        """Fail what waits and begin anew after a while; return the error for the callers."""
        log.error("the dispatcher of %s failed, and starts again", self.name, exc_info=error)
        failure = BatchError(f"the dispatcher of {self.name} failed: {error!r}")
        failure.__cause__ = error
        self.gathering.stop()
        self.fail_waiting(failure)
        self._waiting = Backlog()
        if self.down is None:
            self.down = f"the batches of {self.name} start again after a failure"
            later = asyncio.get_running_loop().call_later
            self._restart = later(self._restart_s, self._begin_anew, context=self.context.copy())
            self._restart_s = min(2 * self._restart_s, _LONGEST_RESTART_S)
        return failure

    def close(self) -> None:
        """Leave no timer behind, and nothing that waits for one of its batches."""
        if self._restart is not None:
            self._restart.cancel()
        self.gathering.follow()

    def _begin_anew(self) -> None:
        self.down = None
        self._observers.restarted()

    def _labels(self, value: Any) -> tuple[Hashable, float]:
        options = self.options
        key = None if options.key is None else options.key(value)
        if options.cost is None:
            return key, 1.0
        cost = options.cost(value)
        if not 0 <= cost <= options.budget:
            raise BatchError(
                f"an item of {self.name} costs {cost}, and a whole batch may cost {options.budget} (max_cost)"
            )
        return key, cost
