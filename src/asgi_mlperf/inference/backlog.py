"""The items of one batched function that wait: in order within each key, the keys taking turns."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from asgi_mlperf.exceptions import DeadlineExceeded
from asgi_mlperf.inference.waiting import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator


class Item(Waiter):
    """One item, waited for by one caller; ``cost`` is 1 where none was declared."""

    __slots__ = ("cost", "key", "value")

    def __init__(
        self, value: Any, name: str, queued_at: float, deadline: float, key: Hashable, cost: float
    ) -> None:
        """Wait for the result of ``value``."""
        super().__init__(name, queued_at, deadline)
        self.value = value
        self.key = key
        self.cost = cost

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not (self.left or self.future.done())

    def late(self) -> None:
        """Tell the caller that it could not be begun in time."""
        message = f"{self.name} was not begun, as it could not have finished before its deadline"
        self.give_up("deadline", DeadlineExceeded(message))


class Room(NamedTuple):
    """What one batch may hold.

    ``size`` and ``inline_size`` bound its padded size: its items times the largest cost among them.
    ``seconds`` says what a batch of a padded size takes, ``ample_s`` what none exceeds.
    """

    items: int
    size: float = math.inf
    inline_size: float = math.inf
    seconds: Callable[[float], float] = lambda _: 0.0
    ample_s: float = 0.0


class Backlog:
    """Items that wait, ``count`` of them. To add, remove or take one takes as long however many there are."""

    def __init__(self) -> None:
        """Begin empty."""
        self._lines: OrderedDict[Hashable, OrderedDict[int, Item]] = OrderedDict()
        self.count = 0

    def add(self, item: Item) -> None:
        """Let ``item`` wait behind those of its key; a new key behind the others."""
        line = self._lines.get(item.key)
        if line is None:
            line = self._lines[item.key] = OrderedDict()
        line[id(item)] = item
        self.count += 1

    def remove(self, item: Item) -> None:
        """Forget ``item`` if it waits, and its value in any case: what minds the wait may keep it a while."""
        item.value = None
        line = self._lines.get(item.key)
        if line is not None and line.pop(id(item), None) is not None:
            self.count -= 1
            if not line:
                del self._lines[item.key]

    def next_up(self, most: int) -> tuple[float, float]:
        """Return the size of the next batch's first item alone, and of a batch of all that it may be."""
        line = next(iter(self._lines.values()))
        first = next(iter(line.values())).cost
        return first, first * min(len(line), most)

    def take(self, now: float, room: Room, items: list[Item]) -> tuple[float, str]:
        """Move the next batch to ``items``: of the key whose turn it is, those that have waited longest.

        Returns its padded size, and why it holds no more. Items that nobody waits for are dropped; so are
        those that could not make their deadline alone. The batch is closed before an item with which it
        would not keep the deadlines of all.
        """
        size, reason = 0.0, "idle_slot"
        while self._lines and not items:
            key, line = next(iter(self._lines.items()))
            size, reason = self._fill(line, now, room, items)
            if line:
                self._lines.move_to_end(key)
            else:
                del self._lines[key]
        return size, reason

    def clear(self) -> Iterator[Item]:
        """Take every item out."""
        for line in list(self._lines.values()):
            yield from line.values()
        self._lines.clear()
        self.count = 0

    def _fill(
        self, line: OrderedDict[int, Item], now: float, room: Room, items: list[Item]
    ) -> tuple[float, str]:
        largest, size, nearest = 0.0, 0.0, math.inf
        ample = now + room.ample_s
        while line:
            number, item = next(iter(line.items()))
            deadline, cost = item.deadline, item.cost
            if not item.wanted:
                del line[number]
                self.count -= 1
                continue
            if deadline < ample and now + room.seconds(cost) > deadline:
                del line[number]
                self.count -= 1
                item.late()
                continue
            # min() and max() would take five times as long, for every item
            grown = cost if cost > largest else largest  # noqa: FURB136
            grown_size = grown * (len(items) + 1)
            soonest = deadline if deadline < nearest else nearest  # noqa: FURB136
            if items:
                if len(items) == room.items:
                    return size, "full"
                if grown_size > room.size:
                    return size, "cost"
                if grown_size > room.inline_size:
                    return size, "budget"
                if soonest < ample and now + room.seconds(grown_size) > soonest:
                    return size, "deadline"
            largest, size, nearest = grown, grown_size, soonest
            del line[number]
            self.count -= 1
            items.append(item)
        return size, "full" if len(items) == room.items else "idle_slot"
