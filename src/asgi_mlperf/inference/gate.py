"""Slots with a queue before them: what an inference pool and a limit on remote calls have in common."""

from __future__ import annotations

import abc
import logging
import math
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from asgi_mlperf.exceptions import DeadlineExceeded, Overloaded
from asgi_mlperf.hooks import ModelCall, current_exchange
from asgi_mlperf.inference.admission import Admission, Refusal, Turn, Waiting
from asgi_mlperf.inference.deadlines import STANDARD, clock, current_deadline, deadline_of
from asgi_mlperf.inference.delays import ServiceTime
from asgi_mlperf.inference.waiting import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.hooks import PoolObservers
    from asgi_mlperf.inference.waiting import Waiter

log = logging.getLogger("asgi_mlperf")

PRIORITIES = ("high", "normal", "low")
"""What a call may ask for, most urgent first; the lowest gets its share too."""

_LOG_EVERY_S = 1.0
_LONGEST_MS = 7 * 24 * 3600 * 1000
_REFUSALS = {
    "queue_full": "overloaded: the queue is full",
    "too_late": "overloaded: the queue is too long for the deadline",
    "shutting_down": "shutting down",
    "restarting": "overloaded: starting again after a failure",
}


class PoolSettings(BaseModel):
    """The inference threads and who may wait for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int | None = Field(
        default=None, ge=1, le=4096, description="inference threads; default: the worker's CPU budget"
    )
    max_queue: int = Field(
        default=1_024, ge=0, description="calls, or items of one batched function, that may wait"
    )
    timeout_ms: int = Field(
        default=60_000,
        ge=1,
        le=_LONGEST_MS,
        description="deadline of a call, queue and run together, once the app has started",
    )
    deadline_header: str = Field(
        default="x-request-timeout-ms",
        min_length=1,
        description="request header that states a nearer deadline, in milliseconds",
    )
    nice: int = Field(
        default=5,
        ge=0,
        le=19,
        description="steps by which inference threads are nicer than the event loop, on Linux",
    )
    stuck_ms: int = Field(
        default=60_000,
        ge=1,
        le=_LONGEST_MS,
        description="run time of every call of a pool at once that turns readiness off",
    )


class Refusable(Waiting, Protocol):
    """What waits at a gate and can be told that it will not get through."""

    def fail(self, error: Exception) -> None:
        """Take that it will not be run, or not be waited for."""


Work = TypeVar("Work", bound=Refusable)


class Gate(abc.ABC, Generic[Work]):
    """Lets at most ``slots`` through at a time; others wait in a bounded queue or are refused."""

    def __init__(self, settings: PoolSettings, *, name: str, slots: int, observers: PoolObservers) -> None:
        """Begin open, with every slot free."""
        self.name = name
        self.observers = observers
        self.default_timeout_s = math.inf
        self.closed = False
        self._timeout_s = settings.timeout_ms / 1000
        self._max_queue = settings.max_queue
        self._stating = STANDARD | {settings.deadline_header.lower().encode()}
        self._admission: Admission[Work] = Admission(slots=slots, max_queue=settings.max_queue)
        self._services: dict[str, ServiceTime] = {}
        self.patience = Patience()
        self._unlogged = 0
        self._logged_at = -math.inf

    @abc.abstractmethod
    def _start(self, work: Work) -> None:
        """Begin ``work``, which has got a slot; call ``_release`` when it has really ended."""

    def serve(self) -> None:
        """From now on, give calls without a timeout of their own the default one.

        What calls took so far is forgotten: loading a model says nothing about using it.
        """
        self.default_timeout_s = self._timeout_s
        self._services.clear()
        self._admission.service_time = ServiceTime()

    def service(self, name: str) -> ServiceTime:
        """Return what calls of that name take."""
        service = self._services.get(name)
        if service is None:
            service = self._services[name] = ServiceTime()
        return service

    def admit(self, deadline: float, level: int, service: ServiceTime, now: float) -> None:
        """Raise ``Overloaded`` for work that may not wait, before it exists: a refusal should cost little."""
        if self.closed:
            raise self.refusal("shutting_down")
        reason = self._admission.reason_to_refuse(deadline, level, service, now)
        if reason is not None:
            raise self.refusal(reason)

    def submit(self, work: Work, *, bounded: bool = True) -> None:
        """Start ``work`` if a slot is free, else let it wait; raise ``Overloaded`` if it may not.

        ``bounded=False`` is for work that ``admit`` let in, or whose owner bounds what stands behind it.
        """
        if self.closed:
            raise self.refusal("shutting_down")
        try:
            at_once = self._admission.offer(work, clock(), bounded=bounded)
        except Refusal as refusal:
            raise self.refusal(refusal.reason) from None
        if at_once:
            self._start(work)
        else:
            self.observers.queue_length(len(self._admission))

    @contextmanager
    def waiting(self, work: Work) -> Iterator[None]:
        """Take ``work`` out of the queue at the end of this block, if it still waits there."""
        try:
            yield
        finally:
            if self._admission.withdraw(work):
                self.observers.queue_length(len(self._admission))

    def ahead(self) -> str:
        """Say what runs and waits before a call that comes now; nothing if a slot is free."""
        if self._admission.running < self._admission.slots:
            return ""
        return f"{self._in_slots()}, {len(self._admission)} waiting"

    def _in_slots(self) -> str:
        return f"{self._admission.running} running"

    def account(self, waiter: Waiter) -> ModelCall:
        """Say how a wait went that is over."""
        return ModelCall(
            name=waiter.name,
            pool=self.name,
            queued_at=waiter.queued_at,
            started_at=waiter.started_at,
            ended_at=clock(),
            batch_size=waiter.batch_size,
            behind=waiter.behind,
        )

    def deadline(self, now: float, timeout_s: float | None, what: str) -> float:
        """Return a call's deadline: the nearest of its own, the request's and the one it is made under."""
        if timeout_s is None:
            timeout_s = self.default_timeout_s
        elif not timeout_s >= 0:
            raise ValueError(f"timeout is seconds from now, 0 or more, not {timeout_s!r}")
        stated = deadline_of(current_exchange.get(), self._stating)
        deadline = min(now + timeout_s, stated, current_deadline.get())
        if deadline <= now:
            self.observers.abandoned("deadline")
            raise DeadlineExceeded(f"the deadline of {what} had passed before it was called")
        return deadline

    def surely_takes(self, waiting: int, batch: int) -> bool:
        """Say whether ``check`` need not be asked: nothing runs, and the next batch holds one item more.

        It must hold for no item that ``check`` would refuse.
        """
        return (
            not self.closed and not self._admission.running and waiting < batch and waiting < self._max_queue
        )

    def check(self, *, waiting: int, batch: int, deadline: float, service: ServiceTime, most: float) -> None:
        """Raise ``Overloaded`` for an item, kept by its batcher, that may not wait.

        ``waiting`` items are before it and run ``batch`` at a time, each batch in ``service``, ``most`` of
        them at once.
        """
        if self.closed:
            raise self.refusal("shutting_down")
        slots = min(self._admission.slots, most)
        free = max(0, slots - self._admission.running)
        if free > 0 and waiting < min(batch, self._max_queue):
            return
        if waiting >= self._max_queue + free * batch:
            raise self.refusal("queue_full")
        batches_before = waiting // batch / slots
        wait_s = self._admission.expected_wait_s(0) + batches_before * service.mean
        if not (free > 0 and waiting < batch) and clock() + wait_s + service.likely > deadline:
            raise self.refusal("too_late")

    def refusal(self, reason: str) -> Overloaded:
        """Count a refusal and return its error; the log has one line a second at the most."""
        self.observers.refused(reason)
        self._unlogged += 1
        now = clock()
        if now - self._logged_at >= _LOG_EVERY_S:
            log.warning("refused %d calls to %s: %s", self._unlogged, self.name, _REFUSALS[reason])
            self._logged_at, self._unlogged = now, 0
        seconds = self._admission.retry_after_s()
        seconds += max(1.0, seconds / 2) * random.random()  # noqa: S311 - spreads retries over whole seconds
        return Overloaded(_REFUSALS[reason], retry_after_s=int(seconds))

    def close(self) -> None:
        """Refuse everything from now on, what waits included."""
        if self.closed:
            return
        self.closed = True
        for work in self._admission.clear():
            work.fail(self.refusal("shutting_down"))
        self.patience.close()
        self.observers.queue_length(0)

    def _release(self, done: Work | None = None, seconds: float = 0.0) -> None:
        """Take a slot back, where ``done`` was done in ``seconds``, and give it on."""
        self._pass_on(self._admission.release(clock(), done, seconds))

    def _pass_on(self, turn: Turn[Work]) -> None:
        for work in turn.refused:
            work.fail(self.refusal("too_late"))
        if turn.next is not None or turn.refused:
            self.observers.queue_length(len(self._admission))
        if turn.next is not None:
            self._start(turn.next)


def level_of(priority: str | None) -> int:
    """Return the level of a priority: its own, else that of the endpoint, else normal."""
    if priority is None:
        exchange = current_exchange.get()
        endpoint = None if exchange is None else exchange.scope.get("endpoint")
        priority = getattr(endpoint, "asgi_mlperf_priority", "normal")
    if priority not in PRIORITIES:
        raise ValueError(f"priority is one of {', '.join(PRIORITIES)}, not {priority!r}")
    return PRIORITIES.index(priority)
