"""Who gets a slot, who waits, who is refused: a pure state machine, with the clock passed in.

In peace the queue is first in, first out. When a standing delay shows, it turns to newest first: the
newest can still be answered in time, the oldest mostly cannot (adaptive LIFO with controlled delay, after
folly's ``Codel`` and B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015). Entries that can no longer make
their deadline are refused unstarted.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, NamedTuple, Protocol, TypeVar

LEVELS = 3
_SHARES = (16, 4, 1)
_LONGEST_RETRY_AFTER_S = 60
_SHORTEST_INTERVAL_S = 0.1
_SHORTEST_TARGET_S = 0.005
_SMOOTHING = 0.1


class Waiting(Protocol):
    """What waits: a deadline and a begin in seconds on the pool's clock, and a level (0: most urgent)."""

    deadline: float
    queued_at: float
    level: int


Entry = TypeVar("Entry", bound=Waiting)


class Refusal(Exception):  # noqa: N818 - a decision, turned into Overloaded by the pool
    """Says why an entry may not wait, and in how many seconds it is worth trying again."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        """``reason`` is a metric label: one of a few words."""
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ServiceTime:
    """What a call takes, learnt from past calls: moving mean and mean deviation, in seconds.

    ``likely`` is the mean and twice the deviation, as TCP estimates a round trip (RFC 6298).
    """

    def __init__(self) -> None:
        """Know nothing yet: 0 seconds."""
        self.mean = 0.0
        self._deviation = 0.0

    @property
    def likely(self) -> float:
        """What a call takes at the most, as a rule."""
        return self.mean + 2 * self._deviation

    def observe(self, seconds: float) -> None:
        """Learn from one call."""
        if not self.mean:
            self.mean = seconds
            return
        self._deviation += _SMOOTHING * (abs(seconds - self.mean) - self._deviation)
        self.mean += _SMOOTHING * (seconds - self.mean)


class StandingDelay:
    """Tells a standing queue from a burst: whether even the least delay of an interval was too long."""

    def __init__(self) -> None:
        """Begin in peace."""
        self.persists = False
        self._least = math.inf
        self._ends = -math.inf

    def observe(self, delay: float, now: float, service_s: float) -> None:
        """Take the delay of the oldest entry when a slot frees."""
        if now >= self._ends:
            self.persists = _SHORTEST_TARGET_S < self._least < math.inf and self._least > service_s
            self._least = math.inf
            self._ends = now + max(_SHORTEST_INTERVAL_S, 4 * service_s)
        self._least = min(self._least, delay)


class Turn(NamedTuple, Generic[Entry]):
    """What follows when a slot frees: whom it goes to, and who is refused because it comes too late."""

    next: Entry | None
    refused: list[Entry]


class Admission(Generic[Entry]):
    """Gives ``slots`` slots to entries and lets at most ``max_queue`` wait.

    A slot is taken by ``offer`` or ``release`` returning an entry and freed by ``release`` alone.
    """

    def __init__(self, *, slots: int, max_queue: int) -> None:
        """Begin with every slot free."""
        self.service_time = ServiceTime()
        self.standing_delay = StandingDelay()
        self.running = 0
        self._slots = slots
        self._max_queue = max_queue
        self._levels: tuple[OrderedDict[int, Entry], ...] = tuple(OrderedDict() for _ in range(LEVELS))
        self._credits = [0] * LEVELS

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    def offer(self, entry: Entry, now: float, *, bounded: bool = True) -> bool:
        """Return True if ``entry`` gets a slot at once, False if it waits; raise ``Refusal`` if neither.

        The length of the queue is only a limit when ``bounded``.
        """
        if self.running < self._slots:
            self.running += 1
            return True
        if bounded:
            self._check(entry, now)
        self._levels[entry.level][id(entry)] = entry
        return False

    def release(self, now: float, service_s: float | None = None) -> Turn[Entry]:
        """Take a slot back, after ``service_s`` seconds of work if any was done, and give it on."""
        self.running -= 1
        if service_s is not None:
            self.service_time.observe(service_s)
        self._measure_delay(now)
        return self._next(now) if self.running < self._slots else Turn(None, [])

    def _next(self, now: float) -> Turn[Entry]:
        refused: list[Entry] = []
        while (entry := self._take()) is not None:
            if now + self.service_time.likely <= entry.deadline:
                self.running += 1
                return Turn(entry, refused)
            refused.append(entry)
        return Turn(None, refused)

    def resize(self, slots: int, now: float) -> list[Turn[Entry]]:
        """Change the number of slots; say who gets those that are new. Fewer take effect as slots free."""
        self._slots = slots
        turns = []
        while self.running < self._slots and len(self):
            turns.append(self._next(now))
        return turns

    def withdraw(self, entry: Entry) -> bool:
        """Forget an entry that waits; say whether it did."""
        return self._levels[entry.level].pop(id(entry), None) is not None

    def clear(self) -> list[Entry]:
        """Empty the queue and return what waited in it."""
        entries = [entry for level in self._levels for entry in level.values()]
        for level in self._levels:
            level.clear()
        return entries

    def retry_after_s(self) -> float:
        """Seconds in which the present queue should be done, at least 1, at most 60."""
        return min(_LONGEST_RETRY_AFTER_S, max(1.0, self._wait_s(len(self))))

    def _check(self, entry: Entry, now: float) -> None:
        if len(self) >= self._max_queue:
            raise Refusal("queue_full", self.retry_after_s())
        before = 0 if self.standing_delay.persists else sum(map(len, self._levels[: entry.level + 1]))
        if now + self._wait_s(before) + self.service_time.likely > entry.deadline:
            raise Refusal("too_late", self.retry_after_s())

    def _wait_s(self, before: int) -> float:
        return (before + 1) * self.service_time.mean / self._slots

    def _measure_delay(self, now: float) -> None:
        oldest = min((next(iter(level.values())).queued_at for level in self._levels if level), default=now)
        self.standing_delay.observe(now - oldest, now, self.service_time.mean)

    def _take(self) -> Entry | None:
        waiting = [number for number, level in enumerate(self._levels) if level]
        if not waiting:
            return None
        chosen = self._choose(waiting) if len(waiting) > 1 else waiting[0]
        _, entry = self._levels[chosen].popitem(last=self.standing_delay.persists)
        return entry

    def _choose(self, waiting: list[int]) -> int:
        # Smooth weighted round robin: every level gets its share, none starves.
        for number in waiting:
            self._credits[number] += _SHARES[number]
        chosen = max(waiting, key=self._credits.__getitem__)
        self._credits[chosen] -= sum(_SHARES[number] for number in waiting)
        return chosen
