"""Seconds lost at known moments, so that what fell into one request can be told when somebody asks."""

from __future__ import annotations

from collections import deque

_KEPT = 10_000


class Timeline:
    """The last ten thousand losses; noting one is quick and takes no lock."""

    def __init__(self) -> None:
        """Begin with none."""
        self._losses: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def note(self, ended_at: float, seconds: float) -> None:
        """Note that ``seconds`` were lost until ``ended_at``; called in order."""
        self._losses.append((ended_at, seconds))

    def between(self, began_at: float, ended_at: float) -> float:
        """Return the seconds lost in a span of time, of what is still known."""
        lost = 0.0
        for until, seconds in reversed(self._losses.copy()):
            if until <= began_at:
                break
            lost += max(0.0, min(until, ended_at) - max(until - seconds, began_at))
        return lost
