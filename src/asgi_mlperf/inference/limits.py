"""A concurrency limit that finds itself, for calls whose capacity is not known here: remote model servers."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.inference.deadlines import clock
from asgi_mlperf.inference.gate import Gate, PoolSettings, level_of
from asgi_mlperf.inference.waiting import Waiter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asgi_mlperf.hooks import PoolObservers

_SHORT, _LONG = 0.2, 0.02
_TOLERANCE = 1.5
_SMOOTHING = 0.2


class Gradient:
    """Says how many calls may be under way, from how long they take: Netflix's Gradient2.

    The limit follows the ratio of the usual to the present duration: it grows by its square root while
    calls take as long as ever, and shrinks, by half a step at the most, when they take half as long again.
    Source: ``Gradient2Limit`` of Netflix's concurrency-limits.
    """

    def __init__(self, *, initial: int, least: int, most: int) -> None:
        """Begin with ``initial``; stay between ``least`` and ``most``."""
        self._limit = float(initial)
        self._least = least
        self._most = most
        self._present = 0.0
        self._usual = 0.0

    @property
    def limit(self) -> int:
        """Whole calls that may be under way."""
        return max(self._least, min(self._most, int(self._limit)))

    def observe(self, seconds: float, under_way: int) -> None:
        """Learn from a call that took ``seconds`` while ``under_way`` calls were, itself included."""
        if not self._usual:
            self._present = self._usual = seconds
        self._present += _SHORT * (seconds - self._present)
        self._usual += _LONG * (seconds - self._usual)
        if self._usual > 2 * self._present:
            self._usual *= 0.95  # after a slow time, what is usual must not stay what was
        if under_way < self._limit / 2:
            return  # nothing was tried: no reason to grow
        gradient = max(0.5, min(1.0, _TOLERANCE * self._usual / max(self._present, 1e-9)))
        wanted = self._limit * gradient + math.sqrt(self._limit)
        self._limit += _SMOOTHING * (wanted - self._limit)
        self._limit = max(float(self._least), min(float(self._most), self._limit))

    def overloaded(self) -> None:
        """Learn that a call failed for want of time: shrink by a tenth."""
        self._limit = max(float(self._least), self._limit * 0.9)


class AdaptiveLimit(Gate["Place"]):
    """Lets as many calls at a time through as the other side bears; the others wait or are refused.

    ``async with limit():`` around the call. A ``TimeoutError`` inside counts as a sign of overload, other
    errors say nothing. Waiting, refusal and deadlines are those of an inference pool.
    """

    def __init__(
        self, settings: PoolSettings, *, name: str, gradient: Gradient, observers: PoolObservers
    ) -> None:
        """Begin with the limit of ``gradient``."""
        super().__init__(settings, name=name, slots=gradient.limit, observers=observers)
        self._gradient = gradient

    @asynccontextmanager
    async def __call__(
        self, *, timeout_s: float | None = None, priority: str | None = None
    ) -> AsyncIterator[None]:
        """Hold a place inside this block; raise ``Overloaded`` or ``DeadlineExceeded`` if there is none."""
        place = self._place(timeout_s, priority)
        await self._enter(place)
        entered, worked = clock(), False
        try:
            yield
            worked = True
        except TimeoutError:
            self._gradient.overloaded()
            raise
        finally:
            self._leave(place, clock() - entered if worked else None)

    async def _enter(self, place: Place) -> None:
        with self.waiting(place):
            self.submit(place)
            try:
                with place:
                    await place.future
            except BaseException:
                if place.entered:
                    self._release()
                raise

    def _place(self, timeout_s: float | None, priority: str | None) -> Place:
        now = clock()
        deadline = self.deadline(now, timeout_s, self.name)
        return Place(self, queued_at=now, deadline=deadline, level=level_of(priority))

    def _start(self, work: Place) -> None:
        self.observers.waited((clock() - work.queued_at,))
        self.observers.running(self._admission.running)
        if work.future.done():
            self._release()
            return
        work.entered = True
        work.settle(None, None)

    def _leave(self, place: Place, seconds: float | None) -> None:
        if seconds is None:
            self._release()
        else:
            self.observers.run.observe(seconds)
            self._gradient.observe(seconds, self._admission.running)
            self._release(place, seconds)
        self.observers.running(self._admission.running)
        for turn in self._admission.resize(self._gradient.limit, clock()):
            self._pass_on(turn)


class Place(Waiter):
    """A place under a limit, waited for by one caller."""

    __slots__ = ("entered", "level", "service")

    def __init__(self, limit: AdaptiveLimit, *, queued_at: float, deadline: float, level: int) -> None:
        """Wait for a place under ``limit``."""
        super().__init__(limit, limit.name, queued_at, deadline)
        self.entered = False
        self.level = level
        self.service = limit.service(limit.name)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` to the caller."""
        self.settle(None, error)
