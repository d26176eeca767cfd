"""A caller's wait for a result: ended by the result, the deadline, or the client's leaving."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from asgi_mlperf.exceptions import ClientLeft, DeadlineExceeded
from asgi_mlperf.hooks import current_exchange

if TYPE_CHECKING:
    from collections.abc import Callable

_WATCH_AFTER_S = 0.005


class _Over:
    """Stands for the future of a wait that has ended."""

    def done(self) -> Literal[True]:
        return True


_OVER = _Over()


class Waiter:
    """One caller and its future; ``name`` is what it waits for, ``deadline`` is on the pool's clock."""

    __slots__ = (
        "batch_size",
        "behind",
        "deadline",
        "future",
        "left",
        "name",
        "queued_at",
        "reason",
        "started_at",
    )

    def __init__(self, name: str, *, queued_at: float, deadline: float) -> None:
        """Begin to wait at ``queued_at``."""
        self.name = name
        self.queued_at = queued_at
        self.deadline = deadline
        self.reason = self.behind = ""
        self.started_at = 0.0
        self.batch_size = 0
        self.left = False
        self.future: asyncio.Future[Any] | _Over = asyncio.get_running_loop().create_future()

    async def wait(self) -> Any:
        """Return the result or raise the error; afterwards ``reason`` says why it was given up, if it was.

        A client that leaves is noticed from 5 ms on, so that a short call pays nothing for it.
        """
        loop = asyncio.get_running_loop()
        watch: list[Callable[[], None]] = []
        departure = loop.call_later(_WATCH_AFTER_S, self._watch, watch)
        expiry = None
        if self.deadline != math.inf:
            expiry = loop.call_later(self.deadline - self.queued_at, self._expire)
        future = cast("asyncio.Future[Any]", self.future)
        try:
            return await future
        except asyncio.CancelledError:
            self.reason = "cancelled"
            raise
        finally:
            del future
            departure.cancel()
            if expiry is not None:
                expiry.cancel()
            for stop in watch:
                stop()
            # An error's traceback holds this frame: without the future there is no way back to the error.
            self.future = _OVER

    def settle(self, result: Any, error: BaseException | None) -> None:
        """End the wait, unless it has ended already."""
        if isinstance(self.future, _Over) or self.future.done():
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
        self._give_up("deadline", DeadlineExceeded(f"{self.name} did not finish before its deadline"))

    def _leave(self) -> None:
        exchange = current_exchange.get()
        if exchange is not None and exchange.app_hears_of_departures:
            self.left = True
            return
        self._give_up("client_left", ClientLeft(f"the client left while {self.name} waited or ran"))

    def _give_up(self, reason: str, error: Exception) -> None:
        if not self.future.done():
            self.reason = reason
            self.settle(None, error)

    def _watch(self, watch: list[Callable[[], None]]) -> None:
        exchange = current_exchange.get()
        if exchange is not None and not exchange.ended:
            watch.append(exchange.on_departure(self._leave))


def name_of(func: Callable[..., Any]) -> str:
    """Name a function for a message, whatever kind of callable it is."""
    while isinstance(func, partial):
        func = func.func
    return getattr(func, "__qualname__", None) or type(func).__qualname__
