"""Whether the event loop turns: a beat on the loop itself, and a thread that says where it hangs."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.health.readiness import answer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.hooks import Clock

log = logging.getLogger("asgi_mlperf")

_BEATS_PER_LIMIT = 8
_SLOWEST_BEAT_S = 1.0


class Heartbeat:
    """Remembers when the event loop was last stuck for ``limit_s`` seconds or more.

    While the loop is stuck no probe is answered at all, and the supervisor's own time-out tells it. What it
    cannot tell is a loop that gets free for a moment just when it is asked: so the answer stays 503 until
    the loop has turned for ``limit_s`` since. One stall is then one or two failed probes, which a supervisor
    forgives; a loop that is stuck again and again never passes for alive.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit_s: float,
        clock: Clock,
        where: Callable[[int], str],
    ) -> None:
        """``where`` says, after a comma, where the thread with an identity is just now."""
        self._loop = loop
        self._limit_s = limit_s
        self._interval_s = min(_SLOWEST_BEAT_S, limit_s / _BEATS_PER_LIMIT)
        self._clock = clock
        self._where = where
        self._due: float | None = None
        self._stuck_s = 0.0
        self._stuck_until: float | None = None
        self._place = ""
        self._told = False
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Watch the loop inside this block, which must be entered and left on it."""
        self._thread = threading.get_ident()
        over = threading.Event()
        self._beat()
        watch = threading.Thread(target=self._watch, args=(over,), name="asgi-mlperf-health", daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()  # the thread ends by itself: waiting for it would block the loop
            if self._timer is not None:
                self._timer.cancel()
            self._due = None

    def reasons(self) -> list[str]:
        """Say for how long the loop was stuck, until when and where; nothing if that is long past."""
        now = self._clock()
        self._note(now)  # a probe may come before the beat that is late
        if self._stuck_until is None or now - self._stuck_until >= self._limit_s:
            return []
        ago = now - self._stuck_until
        return [f"the event loop was stuck for {self._stuck_s:.1f} s until {ago:.1f} s ago{self._place}"]

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 from the event loop, or 503 if it was stuck just now."""
        await answer("live", self.reasons())(scope, receive, send)

    def look(self) -> None:
        """Say, once for each time, where the loop is stuck; called by the thread."""
        late_s = self._late(self._clock())
        if late_s < self._limit_s or self._told:
            return
        self._told = True
        self._place = self._where(self._thread)
        log.warning(
            "the event loop is stuck for %.1f s%s; what blocks belongs into plugin.run or a def endpoint",
            late_s,
            self._place,
        )

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(self._interval_s):
            self.look()

    def _beat(self) -> None:
        now = self._clock()
        self._note(now)
        self._told = False
        self._due = now + self._interval_s
        self._timer = self._loop.call_later(self._interval_s, self._beat)

    def _note(self, now: float) -> None:
        late_s = self._late(now)
        if late_s >= self._limit_s:
            self._stuck_s, self._stuck_until = late_s, now

    def _late(self, now: float) -> float:
        return 0.0 if self._due is None else now - self._due
