"""How quiet a worker can be expected to get."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asgi_mlperf.hooks import Traffic

_WINDOW_S = 0.5


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
        self._traffic = traffic
        self._turned_at = self._quiet_since = now
        self._ends_before = 0

    def look(self, now: float) -> None:
        """Notice at ``now`` (seconds) what happened since the last look."""
        if self.ends != self._ends_before:
            self._ends_before = self.ends
            self._quiet_since = now
        if now - self._turned_at >= _WINDOW_S:
            self._turned_at = now
            self.floor, self.lowest = self.lowest, self._traffic.in_flight

    def quiet_s(self, now: float) -> float:
        """Return for how many seconds no request has ended, to the precision of the looks."""
        return max(0.0, now - self._quiet_since)
