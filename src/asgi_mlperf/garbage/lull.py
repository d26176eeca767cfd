"""How quiet a worker can be expected to get."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asgi_mlperf.hooks import Traffic

_WINDOW_S = 0.5
REST_S = 0.5
"""Seconds between two looks at everything while nothing happens."""
_REST_AFTER_S = 1.0
_FEW_OBJECTS = 100
_LITTLE_BYTES = 1 << 20


class Lull:
    """The fewest requests in flight of late, and how long nothing has ended.

    Streams and long polls that stay for minutes raise ``floor`` with them, so that what comes and goes
    on top of them decides what is a quiet moment.
    """

    def __init__(self, traffic: Traffic, *, now: float) -> None:
        """Begin at ``now`` (seconds) with nothing seen; until a window is over, quiet means idle."""
        self.floor = 0
        self.lowest = traffic.in_flight
        self.ends = 0
        self.rests = False
        self._traffic = traffic
        self._turned_at = self._quiet_since = now
        self._ends_before = self._objects = self._rss = 0

    def look(self, now: float, *, objects: int, rss: int) -> None:
        """Notice at ``now`` (seconds) what happened since the last look.

        ``objects`` is how many are new, ``rss`` how many bytes are resident. ``rests`` says afterwards
        whether there was no request for a second, and nothing else that makes objects or takes memory.
        """
        if self.ends != self._ends_before:
            self._ends_before = self.ends
            self._quiet_since = now
        if now - self._turned_at >= _WINDOW_S:
            self._turned_at = now
            self.floor, self.lowest = self.lowest, self._traffic.in_flight
        still = abs(objects - self._objects) < _FEW_OBJECTS and not self.grew(rss)
        self._objects, self._rss = objects, rss
        self.rests = still and not self._traffic.in_flight and self.quiet_s(now) >= _REST_AFTER_S

    def grew(self, rss: int) -> bool:
        """Say whether resident memory, ``rss`` bytes now, has grown since the last look."""
        return rss - self._rss >= _LITTLE_BYTES

    def quiet_s(self, now: float) -> float:
        """Return for how many seconds no request has ended, to the precision of the looks."""
        return max(0.0, now - self._quiet_since)
