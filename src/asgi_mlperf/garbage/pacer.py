"""What collections cost and freed so far, and when the budget allows the next one."""

from __future__ import annotations

_COST_AT_START = 25e-9
_COST_BOUNDS = (2e-9, 2e-6)
_TELLING_CANDIDATES = 1_000
_FRUITLESS_SHARE = 0.01
_LONGEST_BACK_OFF = 8


class Pacer:
    """A debt that each collection makes and that time pays back.

    A collection that spent ``s`` seconds on survivors lets the next one wait for ``s / share``, so that
    over any time this takes ``share`` of it and one collection more. What is spent on garbage is not
    charged: it has to be freed at some time, and sooner costs no more.

    As in Go, the cost of the next one is predicted from the cost per object of those before. All methods
    may be called at any allocation, in any thread, so each only stores plain numbers.
    """

    def __init__(self, young_share: float, full_share: float, *, now: float) -> None:
        """Begin at ``now`` (seconds), right after a full collection that left nothing to look at."""
        self._young_share = young_share
        self._full_share = full_share
        self.seconds_per_object = _COST_AT_START
        self.survivors = 0
        self._left_between = False
        self.old = 0
        self.back_off = 1
        self.full_seconds = 0.0
        self.full_at = self.full_from = self.young_from = now

    def young(self, *, seconds: float, candidates: int, freed: int, now: float, promoted: bool) -> None:
        """Learn from a young collection; if ``promoted``, only a full one looks at survivors again."""
        looked_at = max(candidates, 1)
        if promoted and self._left_between:
            # It also looked at what earlier ones had left, and only the time it took tells how much.
            looked_at = max(looked_at, int(seconds / self.seconds_per_object))
        elif candidates >= _TELLING_CANDIDATES:
            low, high = _COST_BOUNDS
            cost = min(max(seconds / candidates, low), high)
            self.seconds_per_object += 0.3 * (cost - self.seconds_per_object)
        survivors = max(0, looked_at - freed)
        if promoted:
            self.survivors += survivors
        self._left_between = not promoted
        self.young_from = now + seconds * survivors / looked_at / self._young_share

    def full(self, *, seconds: float, candidates: int, freed: int, now: float) -> None:
        """Learn from a full collection; one that frees next to nothing doubles the wait for the next."""
        known = self.old + self.survivors + candidates
        fruitless = freed <= _FRUITLESS_SHARE * known
        # Survivors that died since are known no more, others were never counted: the time tells as well.
        by_time = int(seconds / self.seconds_per_object)
        looked_at = max(known, by_time, freed, 1)
        self.back_off = min(2 * self.back_off, _LONGEST_BACK_OFF) if fruitless else 1
        self.old = min(looked_at - freed, by_time)
        self.survivors = 0
        self.full_seconds = seconds
        self.full_at = now
        self.full_from = now + seconds * (looked_at - freed) / looked_at / self._full_share

    def froze(self) -> None:
        """Learn that everything alive is out of reach of the next full collection."""
        self.old = self.survivors = 0
        self.full_seconds = 0.0
        self.back_off = 1

    def thawed(self, objects: int) -> None:
        """Learn that so many objects are within reach of the next full collection again."""
        self.old += objects
        self.full_seconds += objects * self.seconds_per_object

    def predicted_full_seconds(self) -> float:
        """Return how long the next full collection will take."""
        return self.full_seconds + self.survivors * self.seconds_per_object
