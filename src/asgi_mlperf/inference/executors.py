"""Where a model call runs, behind one small protocol, so that pools and batches need not care."""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio.events import _set_running_loop  # public in all but its name: documented for event loops
from collections import deque
from contextlib import asynccontextmanager
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    _Handed = tuple[Callable[[], Any], Context, Callable[["Outcome"], None]] | None
    _Jobs = SimpleQueue[_Handed]

_IDLE_S = 10.0


class Outcome(NamedTuple):
    """What became of a job: its result, or the exception that it raised."""

    result: Any
    error: BaseException | None


class Executor(Protocol):
    """Runs jobs, and tells on the event loop when each has *really* ended.

    ``start`` never waits and never raises for the job's sake. ``done`` is called exactly once for each
    job, on the event loop, whatever became of those who wait for it: who counts ``start`` and ``done``
    knows how many jobs run.
    """

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """Be able to run jobs inside this block."""

    def start(self, job: Callable[[], Any], context: Context, done: Callable[[Outcome], None]) -> None:
        """Run ``job`` with ``context``; call ``done`` with what became of it."""


class ThreadExecutor:
    """Runs jobs on ``threads`` AnyIO worker threads of its own, apart from the app's default pool.

    The threads are borrowed once, for the whole lifespan: a job costs one hand-over there and one back.
    """

    def __init__(
        self,
        threads: int,
        *,
        around_job: Callable[[Callable[[], Any]], Any],
        around_thread: Callable[[], AbstractContextManager[None]],
        when_idle: Callable[[], None],
    ) -> None:
        """Call each job through ``around_job``, which returns what the job returns; it must be cheap.

        Each thread enters and leaves ``around_thread`` itself, and calls ``when_idle`` when it has had
        nothing to do for 10 s; neither may fail.
        """
        self._threads = threads
        self._around_job = around_job
        self._around_thread = around_thread
        self._when_idle = when_idle
        self._idle: list[_Jobs] = []
        self._busy = 0

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold the threads inside this block; jobs that do not end keep theirs, and are not waited for."""
        loop = asyncio.get_running_loop()
        limiter = anyio.CapacityLimiter(self._threads)
        threads: list[_Jobs] = [SimpleQueue() for _ in range(self._threads)]
        serving = [
            loop.create_task(
                anyio.to_thread.run_sync(self._serve, loop, jobs, limiter=limiter, abandon_on_cancel=True)
            )
            for jobs in threads
        ]
        self._idle = list(threads)
        try:
            yield
        finally:
            for jobs in threads:
                jobs.put(None)
            if self._busy:
                for task in serving:
                    task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    def start(self, job: Callable[[], Any], context: Context, done: Callable[[Outcome], None]) -> None:
        """Hand ``job`` to the thread that was busy last: its caches and native threads are still warm."""
        self._busy += 1
        self._idle.pop().put((job, context, done))

    def _serve(self, loop: asyncio.AbstractEventLoop, jobs: _Jobs) -> None:
        with self._around_thread():
            self._work(loop, jobs)

    def _work(self, loop: asyncio.AbstractEventLoop, jobs: _Jobs) -> None:
        while (handed := self._next(jobs)) is not None:
            job, context, done = handed
            outcome = context.run(_attempt, self._around_job, job)
            del handed, job, context
            try:
                loop.call_soon_threadsafe(self._ended, jobs, done, outcome)
            except RuntimeError:
                return  # the loop was closed while the job still ran: nobody is left to be told
            del done, outcome

    def _next(self, jobs: _Jobs) -> _Handed:
        try:
            return jobs.get(timeout=_IDLE_S)
        except Empty:
            self._when_idle()
            return jobs.get()

    def _ended(self, jobs: _Jobs, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        self._busy -= 1
        self._idle.append(jobs)
        done(outcome)


class InlineExecutor:
    """Runs jobs of well under a millisecond in the event loop's own thread, one in each turn of the loop.

    To the job it looks like a thread: no event loop runs there.
    """

    def __init__(self, *, around_job: Callable[[Callable[[], Any]], Any]) -> None:
        """Call each job through ``around_job``, which returns what the job returns; it must be cheap."""
        self._around_job = around_job
        self._waiting: deque[Callable[[], None]] = deque()
        self._taken = False
        self._context = Context()  # turns belong to no caller, and must not keep one's variables

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run jobs inside this block; nothing needs to be held for them."""
        yield

    def takes_turn(self, later: Callable[[], None]) -> bool:
        """Say whether the caller may ``start`` a job in this turn of the loop; in another, ``later`` may."""
        if self._taken:
            self._waiting.append(later)
            return False
        self._taken = True
        asyncio.get_running_loop().call_soon(self._next, context=self._context)
        return True

    def start(self, job: Callable[[], Any], context: Context, done: Callable[[Outcome], None]) -> None:
        """Run ``job`` now."""
        loop = asyncio.get_running_loop()
        _set_running_loop(None)
        try:
            outcome = context.run(_attempt, self._around_job, job)
        finally:
            _set_running_loop(loop)
        done(outcome)

    def _next(self) -> None:
        self._taken = False
        if self._waiting:
            begin = self._waiting.popleft()
            self.takes_turn(begin)
            begin()


class TaskExecutor:
    """Runs jobs as tasks on the event loop, awaiting what they return: for coroutine functions."""

    def __init__(self) -> None:
        """Run nothing yet."""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run jobs inside this block; afterwards cancel what still runs."""
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, job: Callable[[], Any], context: Context, done: Callable[[Outcome], None]) -> None:
        """Run ``job`` as a task."""
        task = asyncio.get_running_loop().create_task(self._run(job), context=context)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, done))

    async def _run(self, job: Callable[[], Any]) -> Any:
        result = job()
        return await result if inspect.isawaitable(result) else result

    def _ended(self, task: asyncio.Task[Any], done: Callable[[Outcome], None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            done(Outcome(None, asyncio.CancelledError()))
        elif error := task.exception():
            done(Outcome(None, error))
        else:
            done(Outcome(task.result(), None))


def _attempt(around_job: Callable[[Callable[[], Any]], Any], job: Callable[[], Any]) -> Outcome:
    try:
        if sniffio := sys.modules.get("sniffio"):
            sniffio.current_async_library_cvar.set(None)  # the caller's loop does not run here
        return Outcome(around_job(job), None)
    except BaseException as error:  # noqa: BLE001 - every exception belongs to the caller
        return Outcome(None, error)
