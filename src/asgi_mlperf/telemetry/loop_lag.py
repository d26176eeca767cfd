"""How late the event loop comes back, and how much of that was the garbage collector."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from asgi_mlperf.hooks import Observer

INTERVAL_S = 0.1


class LoopLag:
    """Asks the loop to be called every 100 ms and measures by how much it is late."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        gc_seconds: Callable[[], float],
        by_gc: Observer,
        by_other: Observer,
        on_tick: Callable[[], None],
    ) -> None:
        """``gc_seconds`` gives all collector time so far; ``on_tick`` is called at every measurement."""
        self._loop = loop
        self._gc_seconds = gc_seconds
        self._by_gc = by_gc
        self._by_other = by_other
        self._on_tick = on_tick
        self._due = 0.0
        self._gc_before = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def late_s(self) -> float:
        """Return by how much the next measurement is overdue, 0 if it is not; from the loop's thread."""
        return max(0.0, self._loop.time() - self._due) if self._timer is not None else 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure inside this block."""
        self._schedule()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._on_tick()

    def _schedule(self) -> None:
        self._due = self._loop.time() + INTERVAL_S
        self._gc_before = self._gc_seconds()
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        late = max(0.0, self._loop.time() - self._due)
        by_gc = min(late, self._gc_seconds() - self._gc_before)
        self._by_gc.observe(by_gc)
        self._by_other.observe(late - by_gc)
        self._on_tick()
        self._schedule()
