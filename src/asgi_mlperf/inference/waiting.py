"""A caller's wait for a result: ended by the result, the deadline, or the client's leaving."""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from asgi_mlperf.exceptions import ClientLeft, DeadlineExceeded
from asgi_mlperf.hooks import current_exchange
from asgi_mlperf.inference.deadlines import clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from asgi_mlperf.hooks import Exchange
    from asgi_mlperf.inference.gate import Gate

_LONG_S = 0.05  # hearing of a departure costs as much as all the rest of a short call
_SHORT_S = 2 * _LONG_S
_LOOK_EVERY_S = 0.01


class _Over:
    """Stands for the future of a wait that has ended."""

    def done(self) -> Literal[True]:
        return True


_OVER = _Over()


class Patience:
    """Looks after the waits that get long: its one timer spares short ones a timer of their own.

    It looks every 10 ms at the most, so they are found when they have lasted for 50 to 60 ms.
    """

    def __init__(self) -> None:
        """Begin without a timer; there is one while somebody waits, and up to 50 ms longer."""
        self._short: dict[Waiter, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._context = Context()  # the timer belongs to no caller, and must not keep one's variables

    def mind(self, waiter: Waiter) -> None:
        """Mind the deadline of ``waiter``, and after 50 ms also whether its client has left."""
        if waiter.deadline - waiter.queued_at < _SHORT_S:
            waiter.expire_in_time(waiter.queued_at)
            return
        self._short[waiter] = None
        if self._timer is None:
            self._look_in(_LONG_S)

    def forget(self, waiter: Waiter) -> None:
        """Mind ``waiter`` no more, whose wait is over."""
        self._short.pop(waiter, None)

    def close(self) -> None:
        """Mind nobody any more."""
        self._short.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look, context=self._context)

    def _look(self) -> None:
        self._timer = None
        now, due = clock(), []
        for waiter in self._short:
            if waiter.queued_at + _LONG_S > now:
                self._look_in(max(waiter.queued_at + _LONG_S - now, _LOOK_EVERY_S))
                break
            due.append(waiter)
        for waiter in due:
            del self._short[waiter]
            if not waiter.future.done():
                waiter.expire_in_time(now)
                waiter.watch_departure()


class Waiter:
    """One caller and its future: ``with waiter: result = await waiter.future``.

    It waits at ``gate`` for ``name``; ``deadline`` is on the pool's clock.
    """

    __slots__ = (
        "_stop_watching",
        "_timer",
        "batch_size",
        "behind",
        "deadline",
        "exchange",
        "future",
        "gate",
        "left",
        "name",
        "queued_at",
        "reason",
        "started_at",
    )

    def __init__(self, gate: Gate[Any], name: str, queued_at: float, deadline: float) -> None:
        """Come to the gate at ``queued_at``."""
        self.gate = gate
        self.name = name
        self.queued_at = queued_at
        self.deadline = deadline
        self.exchange: Exchange | None = current_exchange.get()
        self.reason = self.behind = ""
        self.started_at = 0.0
        self.batch_size = 0
        self.left = False
        self.future: Any = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._stop_watching: Callable[[], None] | None = None

    def __enter__(self) -> None:
        """Begin to wait: inside this block ``future`` gives the result, or raises the error.

        A client that leaves is noticed from 50 ms on, so that a short call pays nothing for it. A block, not
        a coroutine: of those every answer passes each on its way.
        """
        gate = self.gate
        if gate.observers.called is not None and not self.started_at:
            self.behind = gate.ahead()
        gate.patience.mind(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the wait; what was given up is counted, and who wants to know is told how it went."""
        gate = self.gate
        gate.patience.forget(self)
        self.end()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self.reason = "cancelled"
        if self.reason:
            gate.observers.abandoned(self.reason)
        if gate.observers.called is not None:
            gate.observers.called(gate.account(self))

    def end(self) -> None:
        """Stop minding; the wait is over.

        An error's traceback holds the frame that waited: without the future no way leads back to the error.
        """
        self.future = _OVER
        self.exchange = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None

    def expire_in_time(self, now: float) -> None:
        """Give up at the deadline, if there is one."""
        if self.deadline != math.inf:
            self._timer = asyncio.get_running_loop().call_later(self.deadline - now, self._expire)

    def watch_departure(self) -> None:
        """Give up when the client leaves, if it is a request's."""
        exchange = self.exchange
        if exchange is not None and not exchange.ended:
            self._stop_watching = exchange.on_departure(self._leave)

    def give_up(self, reason: str, error: Exception) -> None:
        """Raise ``error`` to the caller, who waits no longer for this ``reason``."""
        if not self.future.done():
            self.reason = reason
            self.settle(None, error)

    def settle(self, result: Any, error: BaseException | None) -> None:
        """End the wait, unless it has ended already."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        elif isinstance(error, StopIteration):
            wrapped = RuntimeError(f"{self.name} raised StopIteration")
            wrapped.__cause__ = error
            self.future.set_exception(wrapped)
        else:
            self.future.set_exception(error)

    def _expire(self) -> None:
        self.give_up("deadline", DeadlineExceeded(f"{self.name} did not finish before its deadline"))

    def _leave(self) -> None:
        if self.exchange is not None and self.exchange.app_hears_of_departures:
            self.left = True
            return
        self.give_up("client_left", ClientLeft(f"the client left while {self.name} waited or ran"))


def name_of(func: Callable[..., Any]) -> str:
    """Name a function for a message, whatever kind of callable it is."""
    while isinstance(func, partial):
        func = func.func
    return getattr(func, "__qualname__", None) or type(func).__qualname__
