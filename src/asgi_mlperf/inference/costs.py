"""What a batch takes, learnt from the batches that ran."""

from __future__ import annotations

_WEIGHT = 0.05
_DEVIATION_WEIGHT = 0.1
_OUTLIER = 4.0
_ALIKE = 1e-4


class BatchCost:
    """The seconds that a batch of a size takes: s(n) = a n + b, by least squares over about 20 batches.

    Clipper (NSDI 2017) and BentoML's dispatcher learn the same. Where the sizes seen hardly differ, a larger
    batch is expected to take more in proportion, a smaller one as much. ``likely`` adds twice the mean
    deviation, as TCP's estimate of a round trip does (RFC 6298).
    """

    __slots__ = (
        "_below",
        "_beyond",
        "_deviation",
        "_seconds",
        "_size",
        "_sizes_squared",
        "_together",
        "each",
        "seen",
    )

    def __init__(self) -> None:
        """Know nothing yet: 0 seconds. ``each`` is what a unit of size takes, at the sizes seen."""
        self.seen = 0
        self.each = 0.0
        self._size = self._seconds = 0.0
        self._sizes_squared = self._together = 0.0
        self._deviation = 0.0
        self._below = self._beyond = 0.0

    def observe(self, size: float, seconds: float) -> None:
        """Learn from one batch; a single outlier counts as no more than four times what was expected."""
        expected = self.mean(size)
        if expected > 0:
            seconds = min(seconds, _OUTLIER * expected)
            self._deviation += _DEVIATION_WEIGHT * (abs(seconds / expected - 1) - self._deviation)
        self.seen += 1
        weight = max(_WEIGHT, 1 / self.seen)
        more, longer = size - self._size, seconds - self._seconds
        self._size += weight * more
        self._seconds += weight * longer
        self._sizes_squared = (1 - weight) * (self._sizes_squared + weight * more * more)
        self._together = (1 - weight) * (self._together + weight * more * longer)
        self._lean()

    def doubt(self) -> None:
        """Believe less of it: what is never tried for taking too long would never be found faster."""
        self._seconds *= 0.9
        self._together *= 0.9
        self._lean()

    def mean(self, size: float) -> float:
        """Seconds that a batch of ``size`` takes."""
        more = size - self._size
        seconds = self._seconds + more * (self._beyond if more > 0 else self._below)
        return seconds if seconds > 0 else 0.0

    def likely(self, size: float, deviations: float = 2) -> float:
        """Seconds that it takes at the most, as a rule."""
        return self.mean(size) * (1 + deviations * self._deviation)

    def largest_within(self, seconds: float, deviations: float) -> float:
        """Return the largest size that takes at most ``seconds``, by the line beyond the sizes seen."""
        if not self.seen:
            return 0.0
        allowed = seconds / (1 + deviations * self._deviation)
        if allowed < self._seconds:
            return self._size - (self._seconds - allowed) / self._below if self._below else 0.0
        return self._size + (allowed - self._seconds) / self._beyond if self._beyond else float("inf")

    def _lean(self) -> None:
        """Find the slopes of the line, beyond and below the mean of the sizes seen."""
        self.each = self._seconds / self._size if self._size else 0.0
        if self._sizes_squared > _ALIKE * self._size * self._size:
            self._below = self._beyond = min(max(0.0, self._together / self._sizes_squared), self.each)
        else:
            self._below, self._beyond = 0.0, self.each
