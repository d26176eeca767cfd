"""The items of one batched function that wait: in order within each key, the keys taking turns."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from asgi_mlperf.exceptions import DeadlineExceeded
from asgi_mlperf.inference.waiting import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from asgi_mlperf.inference.gate import Gate

_WANTED, _DEADLINE = attrgetter("wanted"), attrgetter("deadline")


class Item(Waiter):
    """One item, waited for by one caller; ``cost`` is 1 where none was declared.

    ``backlog`` is where it waits to be taken, None afterwards.
    """

    __slots__ = ("backlog", "cost", "key", "value")

    def __init__(
        self,
        value: Any,
        gate: Gate[Any],
        name: str,
        queued_at: float,
        deadline: float,
        key: Hashable,
        cost: float,
    ) -> None:
        """Wait for the result of ``value``."""
        Waiter.__init__(self, gate, name, queued_at, deadline)  # super() is an object more for every item
        self.value = value
        self.key = key
        self.cost = cost
        self.backlog: Backlog | None = None

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not (self.left or self.future.done())

    def end(self) -> None:
        """Stop minding, and let go of the value: an error's traceback may keep this for a while."""
        self.value = None
        if self.backlog is not None:
            self.backlog.remove(self)
        Waiter.end(self)  # as above

    def late(self) -> None:
        """Tell the caller that it could not be begun in time."""
        message = f"{self.name} was not begun, as it could not have finished before its deadline"
        self.give_up("deadline", DeadlineExceeded(message))


class Room(NamedTuple):
    """What one batch may hold.

    ``size`` and ``inline_size`` bound its padded size: its items times the largest cost among them.
    ``seconds`` says what a batch of a padded size takes, ``ample_s`` what none exceeds. ``is_uniform`` says
    that every item costs 1.
    """

    items: int
    size: float = math.inf
    inline_size: float = math.inf
    seconds: Callable[[float], float] = lambda _: 0.0
    ample_s: float = 0.0
    is_uniform: bool = False

    def lacks(self, items: int, size: float) -> str:
        """Say why a batch of ``items`` may not grow by one to ``size``."""
        if items == self.items:
            return "full"
        return "cost" if size > self.size else "budget"


class Backlog:
    """Items that wait, ``count`` of them. To add, remove or take one takes as long however many there are."""

    def __init__(self) -> None:
        """Begin empty."""
        self._lines: OrderedDict[Hashable, OrderedDict[Item, None]] = OrderedDict()
        self.count = 0

    def add(self, item: Item) -> None:
        """Let ``item`` wait behind those of its key; a new key behind the others."""
        item.backlog = self
        line = self._lines.get(item.key)
        if line is None:
            line = self._lines[item.key] = OrderedDict()
        line[item] = None
        self.count += 1

    def remove(self, item: Item) -> None:
        """Forget ``item`` if it waits here."""
        item.backlog = None
        line = self._lines.get(item.key)
        if line is not None and item in line:
            del line[item]
            self.count -= 1
            if not line:
                del self._lines[item.key]

    def next_up(self, most: int) -> tuple[float, float]:
        """Return the size of the next batch's first item alone, and of a batch of all that it may be."""
        line = next(iter(self._lines.values()))
        first = next(iter(line)).cost
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
        items = [item for line in self._lines.values() for item in line]
        self._lines.clear()
        self.count = 0
        for item in items:
            item.backlog = None
            yield item

    def _fill(
        self, line: OrderedDict[Item, None], now: float, room: Room, items: list[Item]
    ) -> tuple[float, str]:
        most = int(min(room.items, room.size, room.inline_size)) if room.is_uniform else 0
        first = list(islice(line, most + 1))  # and whom the batch is closed before
        if most and all(map(_WANTED, first)) and min(map(_DEADLINE, first)) >= now + room.ample_s:
            reason = room.lacks(most, most + 1.0) if len(first) > most else ""
            items.extend(first[:most])
            for item in items:
                item.backlog = None
            passed = len(items)
            size = float(passed)
        else:
            size, passed, reason = self._fill_one_by_one(line, now, room, items)
        if passed == len(line):
            line.clear()
        else:
            for _ in range(passed):
                line.popitem(last=False)
        self.count -= passed
        return size, reason or ("full" if len(items) == room.items else "idle_slot")

    def _fill_one_by_one(
        self, line: OrderedDict[Item, None], now: float, room: Room, items: list[Item]
    ) -> tuple[float, int, str]:
        largest, size, nearest, reason = 0.0, 0.0, math.inf, ""
        ample, passed = now + room.ample_s, 0
        most, largest_size = room.items, min(room.size, room.inline_size)
        for item in line:
            deadline = item.deadline
            if not item.wanted:
                pass
            elif deadline < ample and now + room.seconds(item.cost) > deadline:
                item.late()
            else:
                # min() and max() would take five times as long, for every item
                grown = item.cost if item.cost > largest else largest  # noqa: FURB136 - as said above
                count = len(items)
                grown_size = grown * (count + 1)
                soonest = deadline if deadline < nearest else nearest  # noqa: FURB136 - as said above
                if count:
                    if count == most or grown_size > largest_size:
                        reason = room.lacks(count, grown_size)
                        break
                    if soonest < ample and now + room.seconds(grown_size) > soonest:
                        reason = "deadline"
                        break
                largest, size, nearest = grown, grown_size, soonest
                items.append(item)
            item.backlog = None
            passed += 1
        return size, passed, reason
