"""The app's own reasons not to get traffic: ``plugin.check``."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from asgi_mlperf.hooks import Clock

log = logging.getLogger("asgi_mlperf")


@dataclass(frozen=True, slots=True)
class Check:
    """A check as the app declared it; ``timeout_s`` of None is as the settings say.

    ``on_loop`` is for coroutine functions; others run in threads.
    """

    name: str
    func: Callable[[], Any]
    on_loop: bool
    timeout_s: float | None = None


class Checks:
    """Asks every check at once, each within its time, and keeps what they said for ``cache_s`` seconds.

    Probes that come together share one round. A check never runs twice at a time: one that hangs costs one
    thread, however often it is asked. Plain functions run in threads of their own, so they wait behind no
    model call and no endpoint.
    """

    def __init__(self, checks: Sequence[Check], *, timeout_s: float, cache_s: float, clock: Clock) -> None:
        """``checks`` may grow until they are first asked."""
        self.last: list[str] = []
        self._checks = checks
        self._timeout_s = timeout_s
        self._cache_s = cache_s
        self._clock = clock
        self._asked: list[_Asked] = []
        self._fresh_until = 0.0
        self._round: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Ask inside this block; afterwards cancel what still runs, and forget threads that hang."""
        self._asked = [
            _Asked(check, check.timeout_s or self._timeout_s, self._clock) for check in self._checks
        ]
        self._fresh_until = self._clock()
        try:
            yield
        finally:
            tasks = (self._round, *(asked.task for asked in self._asked))
            running = [task for task in tasks if task is not None]
            self._asked, self._round = [], None
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def ask(self) -> None:
        """Bring ``last`` up to date: the failures of all checks, in the order of their declaration."""
        if not self._asked or self._clock() < self._fresh_until:
            return
        if self._round is None:
            self._round = asyncio.get_running_loop().create_task(self._ask())
        await asyncio.wait({self._round})  # a probe that gives up does not end the round for the others

    async def _ask(self) -> None:
        try:
            found = await asyncio.gather(*(asked.reason() for asked in self._asked))
            self.last = [reason for reason in found if reason]
            self._fresh_until = self._clock() + self._cache_s
        finally:
            self._round = None


class _Asked:
    """One check, and the answer that it owes."""

    def __init__(self, check: Check, timeout_s: float, clock: Clock) -> None:
        self.task: asyncio.Task[Any] | None = None
        self._check = check
        self._timeout_s = timeout_s
        self._clock = clock
        self._began = 0.0
        self._failure = ""

    async def reason(self) -> str | None:
        """Return why the check fails, None if it does not."""
        if self.task is None or self.task.done():
            self._began = self._clock()
            self.task = asyncio.get_running_loop().create_task(_run(self._check))
        await asyncio.wait({self.task}, timeout=self._timeout_s)
        if self.task.done():
            why = self._judge(self.task)
        else:
            why = f"no answer for {self._clock() - self._began:.1f} s"
            if self._check.on_loop:
                self.task.cancel()  # a thread cannot be: it is waited for again, not started again
        return why and f"{self._check.name}: {why}"

    def _judge(self, task: asyncio.Task[Any]) -> str | None:
        if task.cancelled():
            return "cancelled"
        error = task.exception()
        failure, self._failure = self._failure, repr(error)
        if error is None:
            return _verdict(task.result())
        if self._failure != failure:
            # What an error says may be secret and the endpoint is open, so that goes to the log, once.
            log.warning("the check %s failed", self._check.name, exc_info=error)
        return type(error).__name__


def _verdict(answer: Any) -> str | None:
    if answer is None or answer is True or answer == "":
        return None
    if answer is False:
        return "failed"
    if isinstance(answer, str):
        return answer
    return f"returned {type(answer).__name__}; a check returns True, False or a reason"


async def _run(check: Check) -> Any:
    answer = check.func() if check.on_loop else await _in_a_thread(check.func)
    return await answer if inspect.isawaitable(answer) else answer


def _in_a_thread(func: Callable[[], Any]) -> Awaitable[Any]:
    """Call ``func`` in a thread that keeps no process from ending."""
    done: Future[Any] = Future()
    done.set_running_or_notify_cancel()

    def call() -> None:
        try:
            done.set_result(func())
        except Exception as error:  # noqa: BLE001 - every error is the check's answer
            done.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(call,), name="asgi-mlperf-check", daemon=True).start()
    return asyncio.wrap_future(done)
