"""A bounded number of model calls at a time: a slot is held until its thread is really done."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import math
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from pydantic import BaseModel, ConfigDict, Field

from asgi_mlperf.exceptions import DeadlineExceeded, Overloaded
from asgi_mlperf.inference.admission import Admission, Refusal, Turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from asgi_mlperf.hooks import Clock, PoolObservers
    from asgi_mlperf.inference.executors import Executor, Outcome

log = logging.getLogger("asgi_mlperf")


class PoolSettings(BaseModel):
    """The inference threads and who may wait for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int | None = Field(
        default=None, ge=1, description="inference threads; default: the worker's CPU budget"
    )
    max_queue: int = Field(
        default=1_024, ge=0, description="calls, or items of one batched function, that may wait"
    )
    timeout_ms: int = Field(
        default=60_000,
        ge=1,
        description="deadline of a call, queue and run together, once the app has started",
    )


class Work(Protocol):
    """Something that needs a slot; ``begin`` decides at the last moment what is run in it."""

    deadline: float
    queued_at: float
    level: int
    context: contextvars.Context

    def begin(self, now: float) -> Callable[[], Any] | None:
        """Return the job, or None when nothing is left to do."""

    def finish(self, outcome: Outcome) -> None:
        """Take what became of the job."""

    def fail(self, error: Exception) -> None:
        """Take that it will not be run, or not be waited for."""


class Call:
    """One call of ``Pool.run``, waited for by one caller."""

    __slots__ = ("_args", "_func", "context", "deadline", "future", "level", "queued_at")

    def __init__(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        queued_at: float,
        deadline: float,
        level: int,
    ) -> None:
        self._func = func
        self._args = args
        self.queued_at = queued_at
        self.deadline = deadline
        self.level = level
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def begin(self, now: float) -> Callable[[], Any] | None:  # noqa: ARG002 - part of Work
        """Run the call, unless nobody waits for it any more."""
        return None if self.future.done() else self._job

    def finish(self, outcome: Outcome) -> None:
        """Hand the outcome to the caller."""
        settle(self.future, outcome.result, outcome.error)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` to the caller."""
        settle(self.future, None, error)

    def expire(self) -> None:
        """Release the caller: the deadline has passed."""
        self.fail(DeadlineExceeded(f"{name_of(self._func)} did not finish before its deadline"))

    def _job(self) -> Any:
        result = self._func(*self._args)
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError(
                f"plugin.run calls plain functions in a thread, and {name_of(self._func)} is a coroutine "
                f"function: await it directly"
            )
        return result


class Pool:
    """Runs at most ``slots`` jobs at once on its executor; others wait in a bounded queue.

    A waiter is released at its deadline or cancellation at once. Its slot is released when its job has
    really ended, so the bound holds whatever happens to the waiters.
    """

    def __init__(
        self,
        settings: PoolSettings,
        *,
        slots: int,
        executor: Executor,
        clock: Clock,
        observers: PoolObservers,
    ) -> None:
        """Prepare; use within ``lifespan``."""
        self.clock = clock
        self.max_queue = settings.max_queue
        self.default_timeout_s = math.inf
        self._observers = observers
        self._admission: Admission[Work] = Admission(slots=slots, max_queue=settings.max_queue)
        self._executor = executor
        self._running: set[Work] = set()
        self._at_rest = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Pool]:
        """Serve inside this block; afterwards refuse what waits and let go of what runs."""
        try:
            yield self
        finally:
            self._closed = True
            for work in [*self._admission.clear(), *self._running]:
                work.fail(self._refusal("shutting_down"))

    async def run(
        self, func: Callable[..., Any], args: tuple[Any, ...], timeout_s: float | None, level: int = 0
    ) -> Any:
        """Run ``func(*args)`` in a slot and return its result or raise its exception."""
        now = self.clock()
        patience = self.patience_s(timeout_s)
        if patience <= 0:
            raise DeadlineExceeded(f"the deadline of {name_of(func)} had passed before it was called")
        call = Call(func, args, queued_at=now, deadline=now + patience, level=level)
        self.submit(call)
        timer = None if patience == math.inf else asyncio.get_running_loop().call_later(patience, call.expire)
        try:
            return await call.future
        finally:
            if timer is not None:
                timer.cancel()
            if self._admission.withdraw(call):
                self._observers.queue_length(len(self._admission))

    def patience_s(self, timeout_s: float | None) -> float:
        """Seconds a caller waits: its own timeout, or the default."""
        if timeout_s is None:
            return self.default_timeout_s
        if not timeout_s >= 0:
            raise ValueError(f"timeout is seconds from now, 0 or more, not {timeout_s!r}")
        return timeout_s

    def submit(self, work: Work, *, bounded: bool = True) -> None:
        """Start ``work`` if a slot is free, else let it wait; raise ``Overloaded`` if it may not.

        ``bounded=False`` is for work whose owner bounds what stands behind it: it is never refused.
        """
        if self._closed:
            raise self._refusal("shutting_down")
        try:
            at_once = self._admission.offer(work, self.clock(), bounded=bounded)
        except Refusal as refusal:
            raise self._refusal(refusal.reason) from None
        if at_once:
            self._start(work)
        else:
            self._observers.queue_length(len(self._admission))

    def refuse_if_late(self, waiting: int, deadline: float) -> None:
        """Raise ``Overloaded`` for an item behind ``waiting`` others, or whose deadline has passed."""
        if waiting >= self.max_queue:
            raise self._refusal("queue_full")
        if deadline <= self.clock():
            raise self._refusal("too_late")

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing runs or waits, at most ``timeout_s`` seconds."""
        with anyio.move_on_after(timeout_s):
            while self._admission.running:
                self._at_rest.clear()
                await self._at_rest.wait()
        if self._admission.running:
            log.warning("%d model calls were still running after the drain time", self._admission.running)

    def _start(self, work: Work) -> None:
        started = self.clock()
        job = work.begin(started)
        if job is None:
            self._pass_on(self._admission.release(started))
            return
        self._observers.wait.observe(started - work.queued_at)
        self._running.add(work)
        self._executor.start(job, work.context, partial(self._ended, work, started))

    def _ended(self, work: Work, started: float, outcome: Outcome) -> None:
        self._running.discard(work)
        now = self.clock()
        self._observers.run.observe(now - started)
        work.finish(outcome)
        self._pass_on(self._admission.release(now, now - started))

    def _pass_on(self, turn: Turn[Work]) -> None:
        for work in turn.refused:
            work.fail(self._refusal("too_late"))
        if turn.next is not None or turn.refused:
            self._observers.queue_length(len(self._admission))
        if turn.next is not None:
            self._start(turn.next)
        elif not self._admission.running:
            self._at_rest.set()

    def _refusal(self, reason: str) -> Overloaded:
        self._observers.refused(reason)
        seconds = self._admission.retry_after_s() * random.uniform(1.0, 1.5)  # noqa: S311 - spreads retries
        return Overloaded(_REFUSALS[reason], retry_after_s=math.ceil(seconds))


_REFUSALS = {
    "queue_full": "overloaded: the queue is full",
    "too_late": "overloaded: the queue is too long for the deadline",
    "shutting_down": "shutting down",
}


def settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Give a future its end, unless it has one already."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        wrapped = RuntimeError("the function raised StopIteration")
        wrapped.__cause__ = error
        future.set_exception(wrapped)
    else:
        future.set_exception(error)


def name_of(func: Callable[..., Any]) -> str:
    """Name a function for a message, whatever kind of callable it is."""
    return getattr(func, "__qualname__", None) or type(func).__qualname__
