"""What occupies a slot: a single call here, a batch in ``batching``."""

from __future__ import annotations

import contextvars
import inspect
import math
import threading
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from asgi_mlperf.inference.deadlines import clock, current_deadline
from asgi_mlperf.inference.waiting import Waiter, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asgi_mlperf.inference.delays import ServiceTime
    from asgi_mlperf.inference.executors import Outcome
    from asgi_mlperf.inference.gate import Gate


class Work(Protocol):
    """Something that needs a slot; ``begin`` decides at the last moment what is run in it.

    ``inline`` says, once begun, whether the job is to run on the event loop. ``seat`` knows the thread that
    runs it, as soon as one does; ``service`` what such work takes.
    """

    name: str
    deadline: float
    queued_at: float
    level: int
    context: contextvars.Context
    service: ServiceTime
    seat: Seat
    inline: bool

    def inline_room(self) -> float:
        """Return how large it may be on the event loop, in a turn of its own; 0 to use a thread."""

    def begin(self, now: float, room: float) -> Callable[[], Any] | None:
        """Return the job, or None when nothing is left to do; ``room`` is what ``inline_room`` says now."""

    def waits(self) -> Sequence[float]:
        """Return the seconds that each caller waited, once begun."""

    def finish(self, outcome: Outcome) -> None:
        """Take what became of the job."""

    def fail(self, error: Exception) -> None:
        """Take that it will not be run, or not be waited for."""


class Seat:
    """What a job knows of its place, and tells: the pool, the deadline, and the thread once it runs."""

    __slots__ = ("deadline", "moved_at", "pool", "thread")

    def __init__(self, pool: str, deadline: float = math.inf) -> None:
        """Be nowhere yet."""
        self.pool = pool
        self.deadline = deadline
        self.thread: int | None = None
        self.moved_at = 0.0

    def moved(self) -> None:
        """Note that a job of several steps made one, or that one of its callers took of it."""
        self.moved_at = clock()

    def take(self) -> None:
        """Note, from inside the job, where it runs and until when it is of use."""
        self.thread = threading.get_ident()
        current_deadline.set(self.deadline)
        current_pool.set(self.pool)


current_pool: ContextVar[str | None] = ContextVar("current_pool", default=None)
"""The pool whose slot the running code holds."""


class Call(Waiter):
    """One call of ``Pool.run``, waited for by one caller."""

    __slots__ = ("_args", "_func", "context", "level", "seat", "service")
    inline = False

    def __init__(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        gate: Gate[Any],
        *,
        name: str,
        queued_at: float,
        deadline: float,
        level: int,
        service: ServiceTime,
    ) -> None:
        """Take the caller's context variables along."""
        super().__init__(gate, name, queued_at, deadline)
        self._func = func
        self._args = args
        self.level = level
        self.context = contextvars.copy_context()
        self.service = service
        self.seat = Seat(gate.name, deadline)

    def inline_room(self) -> float:
        """Use a thread."""
        return 0.0

    def begin(self, now: float, room: float) -> Callable[[], Any] | None:  # noqa: ARG002 - part of Work
        """Run the call, unless nobody waits for it any more."""
        self.started_at = now
        return None if self.future.done() or self.left else partial(_call, self._func, self._args, self.seat)

    def end(self) -> None:
        """Stop minding, and let go of the arguments: an error's traceback may keep this for a while."""
        super().end()
        self._args = ()

    def waits(self) -> Sequence[float]:
        """Return the seconds that the one caller waited."""
        return (self.started_at - self.queued_at,)

    def finish(self, outcome: Outcome) -> None:
        """Hand the outcome to the caller."""
        self.settle(outcome.result, outcome.error)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` to the caller."""
        self.settle(None, error)


def _call(func: Callable[..., Any], args: tuple[Any, ...], seat: Seat) -> Any:
    seat.take()
    result = func(*args)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            f"plugin.run calls plain functions in a thread, and {name_of(func)} is a coroutine function: "
            f"await it directly"
        )
    return result
