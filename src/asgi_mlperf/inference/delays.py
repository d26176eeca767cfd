"""What admission goes by: how long calls take, and whether waiting for them has become the rule."""

from __future__ import annotations

import math

_SHORTEST_INTERVAL_S = 0.1
_ENDANGERED_SHARE = 1 / 3
_MANY = 0.2
_CALM_INTERVALS = 5
_SMOOTHING = 0.1


class ServiceTime:
    """What a call takes, learnt from past calls: moving mean and mean deviation, in seconds.

    ``likely``, what it takes at the most as a rule, is the mean and twice the deviation, as TCP estimates a
    round trip (RFC 6298).
    """

    def __init__(self) -> None:
        """Know nothing yet: 0 seconds."""
        self.mean = self.likely = 0.0
        self._deviation = 0.0

    def observe(self, seconds: float) -> None:
        """Learn from one call."""
        if not self.mean:
            self.mean = self.likely = seconds
            return
        self._deviation += _SMOOTHING * (abs(seconds - self.mean) - self._deviation)
        self.mean += _SMOOTHING * (seconds - self.mean)
        self.likely = self.mean + 2 * self._deviation


class StandingDelay:
    """Tells a queue that endangers deadlines from a burst, or from callers that wait in good time.

    ``persists``: throughout an interval even the oldest entry's least wait was more than a third of the
    time that it had, or many gave up waiting, as callers may have less patience than they told. ``strict``:
    deadlines were in danger, and would be again: within the last five intervals they still were, or the
    door refused many.
    """

    def __init__(self) -> None:
        """Begin in peace."""
        self.persists = False
        self.strict = False
        self._calm = _CALM_INTERVALS
        self._least = math.inf
        self._freed = self._left = self._refused = 0
        self._ends = self._forgotten = -math.inf

    def is_strict(self, now: float) -> bool:
        """Say whether the door is strict; what nobody came to since is forgotten."""
        return self.strict and now < self._forgotten

    def left(self) -> None:
        """Count an entry that gave up waiting, or waited for nothing."""
        self._left += 1

    def refused(self) -> None:
        """Count an entry that the strict door refused."""
        self._refused += 1

    def observe(self, share: float, now: float, service_s: float) -> None:
        """Take the ``share`` of its time that the oldest entry has waited, when a slot frees."""
        if now >= self._forgotten:
            self._calm = _CALM_INTERVALS
            self._count_anew()
        if now >= self._ends:
            many = _MANY * self._freed
            endangered = _ENDANGERED_SHARE < self._least < math.inf
            self.persists = endangered or self._left > many
            self._calm = 0 if endangered or self._refused > many else self._calm + 1
            self.strict = self._calm < _CALM_INTERVALS
            self._count_anew()
            interval_s = max(_SHORTEST_INTERVAL_S, 4 * service_s)
            self._ends, self._forgotten = now + interval_s, now + (1 + _CALM_INTERVALS) * interval_s
        self._least = min(self._least, share)
        self._freed += 1

    def _count_anew(self) -> None:
        self._least = math.inf
        self._freed = self._left = self._refused = 0
