"""Who gets a slot, who waits, who is refused: a pure state machine, with the clock passed in.

In peace the queue is first in, first out. When a standing delay endangers the deadlines, or many give up
waiting, it turns to newest first: the newest can still be answered in time, the oldest mostly not (adaptive
LIFO with controlled delay, after folly's ``Codel`` and B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015).
And the door becomes strict: it lets in only what will begin soon, so that the queue becomes short and stays
so, and a refusal costs no more than a look at it. What can no longer make its deadline is refused unstarted.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from asgi_mlperf.inference.delays import ServiceTime, StandingDelay

LEVELS = 3
_SHARES = (16, 4, 1)
_LONGEST_RETRY_AFTER_S = 60
_SOON_SHARE = 0.125
_SOON_CALLS = 2


class Waiting(Protocol):
    """What waits: deadline and begin on the gate's clock, level (0: most urgent), what its kind takes."""

    deadline: float
    queued_at: float
    level: int
    service: ServiceTime


Entry = TypeVar("Entry", bound=Waiting)


class Refusal(Exception):  # noqa: N818 - a decision, turned into Overloaded by the gate
    """Says why an entry may not wait, in a word that is a metric label."""

    def __init__(self, reason: str) -> None:
        """``reason`` is one of a few words."""
        super().__init__(reason)
        self.reason = reason


class Turn(NamedTuple, Generic[Entry]):
    """What follows when a slot frees: whom it goes to, and who is refused because it comes too late."""

    next: Entry | None
    refused: list[Entry]


class Level(Generic[Entry]):
    """The entries of one level that wait, oldest first, and the seconds of work that they are."""

    def __init__(self) -> None:
        """Begin empty."""
        self.expected_s = 0.0
        self._entries: OrderedDict[int, tuple[Entry, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Let ``entry`` wait behind the others."""
        self._entries[id(entry)] = entry, entry.service.mean
        self.expected_s += entry.service.mean

    def take(self, *, newest: bool) -> Entry:
        """Take the oldest entry out, or the newest, but not before an oldest that has no deadline."""
        oldest, _ = next(iter(self._entries.values()))
        if newest and oldest.deadline != math.inf:
            entry, _ = self._entries[next(reversed(self._entries))]
        else:
            entry = oldest
        self.remove(entry)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Forget ``entry``; say whether it waited here."""
        found = self._entries.pop(id(entry), None)
        if found is not None:
            self.expected_s = self.expected_s - found[1] if self._entries else 0.0
        return found is not None

    def oldest_due(self) -> Entry | None:
        """Return the entry that has waited longest of those with a deadline."""
        return next((entry for entry, _ in self._entries.values() if entry.deadline != math.inf), None)

    def clear(self) -> list[Entry]:
        """Empty the level and return what waited there."""
        entries = [entry for entry, _ in self._entries.values()]
        self._entries.clear()
        self.expected_s = 0.0
        return entries


class Admission(Generic[Entry]):
    """Gives ``slots`` slots to entries and lets at most ``max_queue`` wait.

    A slot is taken by ``offer`` or ``release`` returning an entry and freed by ``release`` alone.
    """

    def __init__(self, *, slots: int, max_queue: int) -> None:
        """Begin with every slot free."""
        self.service_time = ServiceTime()
        self.standing_delay = StandingDelay()
        self.running = 0
        self.slots = slots
        self._max_queue = max_queue
        self._levels: tuple[Level[Entry], ...] = tuple(Level() for _ in range(LEVELS))
        self._waiting = 0
        self._credits = [0] * LEVELS

    def __len__(self) -> int:
        return self._waiting

    def offer(self, entry: Entry, now: float, *, bounded: bool = True) -> bool:
        """Return True if ``entry`` gets a slot at once, False if it waits; raise ``Refusal`` if neither.

        The length of the queue is only a limit when ``bounded``.
        """
        if bounded:
            reason = self.reason_to_refuse(entry.deadline, entry.level, entry.service, now)
            if reason is not None:
                raise Refusal(reason)
        if self.running < self.slots:
            self.running += 1
            return True
        self._levels[entry.level].add(entry)
        self._waiting += 1
        return False

    def reason_to_refuse(
        self, deadline: float, level: int, service: ServiceTime, now: float
    ) -> Literal["queue_full", "too_late"] | None:
        """Say why an entry like this may not wait; None if it may, or need not."""
        if self.running < self.slots:
            return None
        if self._waiting >= self._max_queue:
            return "queue_full"
        work_s = self._work_s(level)
        if now + self._wait_s(work_s) + service.likely > deadline:
            return "too_late"
        if self.standing_delay.is_strict(now) and not self._is_soon(work_s, deadline - now):
            self.standing_delay.refused()
            return "too_late"
        return None

    def release(self, now: float, done: Entry | None = None, service_s: float = 0.0) -> Turn[Entry]:
        """Take a slot back and give it on; ``done`` is what was done there, in ``service_s`` seconds."""
        self.running -= 1
        if done is not None:
            done.service.observe(service_s)
            self.service_time.observe(service_s)
        self.standing_delay.observe(self._share_waited(now), now, self.service_time.mean)
        return self._next(now) if self.running < self.slots else Turn(None, [])

    def resize(self, slots: int, now: float) -> list[Turn[Entry]]:
        """Change the number of slots; say who gets those that are new. Fewer take effect as slots free."""
        self.slots = slots
        turns = []
        while self.running < self.slots and len(self):
            turns.append(self._next(now))
        return turns

    def withdraw(self, entry: Entry) -> bool:
        """Forget an entry that waits for nobody; say whether it waited."""
        waited = self._levels[entry.level].remove(entry)
        if waited:
            self._waiting -= 1
            self.standing_delay.left()
        return waited

    def clear(self) -> list[Entry]:
        """Empty the queue and return what waited in it."""
        self._waiting = 0
        return [entry for level in self._levels for entry in level.clear()]

    def expected_wait_s(self, level: int) -> float:
        """Seconds until a new entry of ``level`` should get a slot: the work before it, over the slots."""
        return 0.0 if self.running < self.slots else self._wait_s(self._work_s(level))

    def retry_after_s(self) -> float:
        """Seconds in which the present queue should be done, at least 1, at most 60."""
        work_s = self._work_s(LEVELS) + self.service_time.mean
        return min(_LONGEST_RETRY_AFTER_S, max(1.0, work_s / self.slots))

    def _work_s(self, level: int) -> float:
        work_s = 0.0
        for waiting in self._levels[: level + 1]:
            work_s += waiting.expected_s
        return work_s

    def _wait_s(self, work_s: float) -> float:
        newest_first = self.standing_delay.persists
        return ((0.0 if newest_first else work_s) + self.service_time.mean) / self.slots

    def _is_soon(self, work_s: float, time_s: float) -> bool:
        return work_s / self.slots <= max(_SOON_SHARE * time_s, _SOON_CALLS * self.service_time.mean)

    def _next(self, now: float) -> Turn[Entry]:
        refused: list[Entry] = []
        while (entry := self._take()) is not None:
            if now + entry.service.likely <= entry.deadline:
                self.running += 1
                return Turn(entry, refused)
            self.standing_delay.left()
            refused.append(entry)
        return Turn(None, refused)

    def _take(self) -> Entry | None:
        if not self._waiting:
            return None
        waiting = [number for number, level in enumerate(self._levels) if level]
        chosen = self._choose(waiting) if len(waiting) > 1 else waiting[0]
        self._waiting -= 1
        return self._levels[chosen].take(newest=self.standing_delay.persists)

    def _choose(self, waiting: list[int]) -> int:
        # Smooth weighted round robin: every level gets its share, none starves.
        for number in waiting:
            self._credits[number] += _SHARES[number]
        chosen = max(waiting, key=self._credits.__getitem__)
        self._credits[chosen] -= sum(_SHARES[number] for number in waiting)
        return chosen

    def _share_waited(self, now: float) -> float:
        if not self._waiting:
            return 0.0
        oldest = (level.oldest_due() for level in self._levels if level)
        return max(
            (
                (now - entry.queued_at) / max(entry.deadline - entry.queued_at, 1e-9)
                for entry in oldest
                if entry
            ),
            default=0.0,
        )
