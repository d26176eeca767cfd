"""A bounded number of model calls at a time: a slot is held until its thread is really done."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from asgi_mlperf.exceptions import Overloaded
from asgi_mlperf.frames import current_frames
from asgi_mlperf.inference.deadlines import clock
from asgi_mlperf.inference.gate import Gate, PoolSettings, level_of
from asgi_mlperf.inference.waiting import name_of
from asgi_mlperf.inference.work import Call, Work, current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from asgi_mlperf.hooks import PoolObservers
    from asgi_mlperf.inference.executors import Executor, InlineExecutor, Outcome

log = logging.getLogger("asgi_mlperf")

_FRAMES = 16


class Pool(Gate[Work]):
    """Runs at most ``slots`` jobs at once on its executor; others wait in a bounded queue.

    A caller is released at its deadline, its cancellation, or when its client leaves. Its slot is released
    when its job has really ended, so the bound holds whatever happens to the callers.
    """

    def __init__(
        self,
        settings: PoolSettings,
        *,
        name: str,
        slots: int,
        executor: Executor,
        inline: InlineExecutor | None = None,
        observers: PoolObservers,
    ) -> None:
        """Prepare; use within ``lifespan``. Work that may run on the event loop runs on ``inline``."""
        super().__init__(settings, name=name, slots=slots, observers=observers)
        self._slots = slots
        self._stuck_s = settings.stuck_ms / 1000
        self._executor = executor
        self._inline = inline
        self._running: dict[Work, float] = {}
        self._announced = 0
        self._at_rest = asyncio.Event()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Pool]:
        """Serve inside this block; afterwards refuse what waits and let go of what runs."""
        async with self._executor.lifespan():
            try:
                yield self
            finally:
                self.close()

    async def run(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        timeout_s: float | None = None,
        priority: str | None = None,
    ) -> Any:
        """Run ``func(*args)`` in a slot and return its result or raise its exception."""
        now, name = clock(), name_of(func)
        self.refuse_own(name)
        deadline = self.deadline(now, timeout_s, name)
        level, service = level_of(priority), self.service(name)
        self.admit(deadline, level, service, now)
        call = Call(
            func, args, self, name=name, queued_at=now, deadline=deadline, level=level, service=service
        )
        with self.waiting(call):
            self.submit(call, bounded=False)
            with call:
                return await call.future

    def refuse_own(self, name: str) -> None:
        """Raise ``RuntimeError`` under a call of this same pool: it would wait for its own slot."""
        if current_pool.get() == self.name:
            raise RuntimeError(
                f"{name} was sent to the pool {self.name!r} from inside one of its own calls, whose slot it "
                f"would wait for: call it directly, or give it a pool of its own with plugin.pool"
            )

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing runs or waits, at most ``timeout_s`` seconds."""
        with anyio.move_on_after(timeout_s):
            while self._admission.running or self._announced:
                self._at_rest.clear()
                await self._at_rest.wait()
        if self._running:
            log.warning("%d calls to %s still ran after the drain time", len(self._running), self.name)

    def close(self) -> None:
        """Refuse everything from now on, what waits and what runs included; slots free as jobs end."""
        if self.closed:
            return
        super().close()
        for work in self._running:
            work.fail(self.refusal("shutting_down"))

    def stuck(self) -> str | None:
        """Say what occupies every slot for too long, and where; None while a slot is free or young."""
        now = clock()
        since = {work: max(started, work.seat.moved_at) for work, started in self._running.items()}
        if len(since) < self._slots or now - max(since.values()) < self._stuck_s:
            return None
        work, started = min(since.items(), key=lambda entry: entry[1])
        return f"{self.name} is stuck: {work.name} runs for {now - started:.0f} s{where(work.seat.thread)}"

    def _in_slots(self) -> str:
        names = Counter(work.name for work in self._running)
        return ", ".join(f"{count} of {name}" for name, count in names.items()) + " running"

    def announce(self) -> None:
        """Expect a ``submit`` before the pool is at rest."""
        self._announced += 1

    def submit_announced(self, work: Work) -> None:
        """Submit, whatever the length of the queue, what was announced."""
        try:
            self.submit(work, bounded=False)
        except Overloaded as error:
            work.fail(error)
        self.retract()

    def retract(self) -> None:
        """Expect one submission less."""
        self._announced -= 1
        self._look_at_rest()

    def _start(self, work: Work) -> None:
        room = 0.0 if self._inline is None else work.inline_room()
        if self._inline is None or not room or self._inline.takes_turn(partial(self._begin_later, work)):
            self._begin(work, room)

    def _begin_later(self, work: Work) -> None:
        self._begin(work, work.inline_room())

    def _begin(self, work: Work, room: float) -> None:
        started = clock()
        if self.closed:
            work.fail(self.refusal("shutting_down"))
        job = None if self.closed else work.begin(started, room)
        if job is None:
            self._release()
            self._look_at_rest()
            return
        executor = self._inline if self._inline is not None and work.inline else self._executor
        self.observers.waited(work.waits())
        self._running[work] = started
        self.observers.running(len(self._running))
        executor.start(job, work.context, partial(self._ended, work))

    def _ended(self, work: Work, outcome: Outcome) -> None:
        seconds = clock() - self._running.pop(work)
        self.observers.running(len(self._running))
        self.observers.run.observe(seconds)
        try:
            work.finish(outcome)
        except Exception as error:  # noqa: BLE001 - whatever the result does when it is looked at
            work.fail(error)
        self._release(work, seconds)
        self._look_at_rest()

    def _look_at_rest(self) -> None:
        if not self._admission.running and not self._announced:
            self._at_rest.set()


def where(thread: int | None) -> str:
    """Say where in its call a thread is: the innermost frames, each with the one that called it after it."""
    frame = current_frames().get(thread) if thread else None
    places: list[str] = []
    while frame is not None and len(places) < _FRAMES and frame.f_globals.get("__package__") != __package__:
        places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return f", at {', from '.join(places)}" if places else ""
