"""Who may wait for a slot, and for how long: pure bookkeeping, with the clock passed in."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

_LONGEST_RETRY_AFTER_S = 60
_SMOOTHING = 0.2


class Waiting(Protocol):
    """What waits: with a deadline in seconds on the pool's clock (``inf``: none)."""

    deadline: float


Entry = TypeVar("Entry", bound=Waiting)


class Refusal(Exception):  # noqa: N818 - a decision, turned into Overloaded by the pool
    """Says why an entry may not wait, and in how many seconds it is worth trying again."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        """``reason`` is a metric label: one of a few words."""
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ServiceTime:
    """What a call takes, learnt from past calls: an exponentially weighted mean, in seconds."""

    def __init__(self) -> None:
        """Know nothing yet: 0 seconds."""
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Learn from one call."""
        weight = _SMOOTHING if self.seconds else 1.0
        self.seconds += weight * (seconds - self.seconds)


class AdmissionQueue(Generic[Entry]):
    """First in, first out; at most ``max_queue`` entries; none admitted that cannot make its deadline."""

    def __init__(self, *, slots: int, max_queue: int) -> None:
        """Queue for ``slots`` places that work in parallel."""
        self.service_time = ServiceTime()
        self._slots = slots
        self._max_queue = max_queue
        self._entries: OrderedDict[int, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def admit(self, entry: Entry, now: float, *, bounded: bool = True) -> None:
        """Let ``entry`` wait, or raise ``Refusal``; the length is only a limit when ``bounded``."""
        if bounded and len(self._entries) >= self._max_queue:
            raise Refusal("queue_full", self.retry_after_s())
        if now + self.expected_wait_s() + self.service_time.seconds > entry.deadline:
            raise Refusal("too_late", self.retry_after_s())
        self._entries[id(entry)] = entry

    def next(self, now: float) -> Entry | None:
        """Take the oldest entry whose deadline has not passed; drop the others unstarted."""
        while self._entries:
            _, entry = self._entries.popitem(last=False)
            if entry.deadline > now:
                return entry
        return None

    def withdraw(self, entry: Entry) -> None:
        """Forget an entry, wherever it is by now."""
        self._entries.pop(id(entry), None)

    def clear(self) -> list[Entry]:
        """Empty the queue and return what waited in it."""
        entries = list(self._entries.values())
        self._entries.clear()
        return entries

    def expected_wait_s(self) -> float:
        """Estimate how long a new entry waits: queued work over the rate at which it is done."""
        return (len(self._entries) + 1) * self.service_time.seconds / self._slots

    def retry_after_s(self) -> int:
        """Whole seconds in which the present queue should be done, at least 1, at most 60."""
        return min(_LONGEST_RETRY_AFTER_S, max(1, math.ceil(self.expected_wait_s())))
