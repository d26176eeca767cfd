"""How long each collection stopped the process, and whether a request had to wait for it."""

from __future__ import annotations

import gc
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asgi_mlperf.hooks import Clock, Traffic

_UNREAD_PAUSES = 10_000


@dataclass(frozen=True, slots=True)
class Pause:
    """One collection: its generation, what it cost, what it had to look at, and where it fell.

    ``candidates`` counts the objects that were new when it began.
    """

    generation: int
    seconds: float
    candidates: int
    freed: int
    where: Literal["request", "idle"]


@dataclass(slots=True)
class GarbageState:
    """Where the schedule stands, for whoever reports it; only the schedule writes it.

    ``frozen_objects`` is exact at start-up and an estimate after later freezes.
    """

    frozen_objects: int = 0
    deferred_s: float = 0.0
    valve_open_for: str | None = None
    valve_openings: dict[str, int] = field(default_factory=lambda: {"memory": 0, "overdue": 0})


class Pauses:
    """Times every collection of this process, automatic ones included.

    The collector stops the world at any allocation, also inside a lock of whoever is listening. So a
    pause is only noted here, without locks, and read later by ``drain``.
    """

    def __init__(self, clock: Clock, traffic: Traffic) -> None:
        """Time with ``clock`` (seconds); ``traffic`` tells whether a request is in flight."""
        self.total_seconds = 0.0
        self.state = GarbageState()
        self.listeners: list[Callable[[Pause], None]] = []
        self._clock = clock
        self._traffic = traffic
        self._began = 0.0
        self._candidates = 0
        self._unread: deque[Pause] = deque(maxlen=_UNREAD_PAUSES)

    def drain(self) -> Iterator[Pause]:
        """Yield each pause since the last call, oldest first."""
        while self._unread:
            yield self._unread.popleft()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside this block."""
        gc.callbacks.append(self._callback)
        try:
            yield
        finally:
            with suppress(ValueError):  # whoever cleared the list has done it for us
                gc.callbacks.remove(self._callback)

    def keep_watching(self) -> None:
        """Watch again, should somebody have cleared the list of callbacks."""
        if self._callback not in gc.callbacks:
            gc.callbacks.append(self._callback)

    def _callback(self, phase: Literal["start", "stop"], info: dict[str, Any]) -> None:
        if phase == "start":
            self._candidates = gc.get_count()[0]
            self._began = self._clock()
            return
        seconds = self._clock() - self._began
        where: Literal["request", "idle"] = "request" if self._traffic.in_flight else "idle"
        pause = Pause(info["generation"], seconds, self._candidates, info["collected"], where)
        self.total_seconds += seconds
        self._unread.append(pause)
        for listener in self.listeners:
            listener(pause)
