"""Where a model call runs, behind one small protocol, so that pools and batches need not care."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Outcome(NamedTuple):
    """What became of a call: its result, or the exception that it raised."""

    result: Any
    error: BaseException | None


Job = "Callable[[], Any]"


class Executor(Protocol):
    """Runs one job to its real end and says what became of it.

    ``execute`` returns only when the job is done: whoever awaits it holds a slot for exactly so long. An
    exception of the job is an ``Outcome``, so that a raised exception always concerns the executor.
    """

    def execute(self, job: Callable[[], Any]) -> Awaitable[Outcome]:
        """Run ``job`` to its end."""


class ThreadExecutor:
    """Runs jobs on at most ``threads`` AnyIO worker threads, apart from the app's default pool."""

    def __init__(self, threads: int, *, prepare_thread: Callable[[], None]) -> None:
        """Call ``prepare_thread`` in the thread before each job; it must be cheap and idempotent."""
        self._limiter = anyio.CapacityLimiter(threads)
        self._prepare_thread = prepare_thread

    async def execute(self, job: Callable[[], Any]) -> Outcome:
        """Run ``job`` in a worker thread with the caller's context variables."""
        return await anyio.to_thread.run_sync(self._attempt, job, limiter=self._limiter)

    def _attempt(self, job: Callable[[], Any]) -> Outcome:
        try:
            self._prepare_thread()
            return Outcome(job(), None)
        except BaseException as error:  # noqa: BLE001 - every exception belongs to the caller
            return Outcome(None, error)


class InlineExecutor:
    """Runs jobs on the event loop, awaiting what they return: for ``async def`` batch functions."""

    async def execute(self, job: Callable[[], Any]) -> Outcome:
        """Run ``job`` here and await its result."""
        try:
            return Outcome(await job(), None)
        except Exception as error:  # noqa: BLE001 - every exception belongs to the caller
            return Outcome(None, error)
