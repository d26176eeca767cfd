"""What decisions about garbage are made from, and what they can be."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Generation(IntEnum):
    """What to collect: new objects; also those that survived one collection; everything not frozen."""

    NEW = 0
    YOUNG = 1
    FULL = 2


class Heap(NamedTuple):
    """What a decision looks at; seconds, bytes (limit 0: none), and counts.

    ``new_passes`` counts collections of only the new objects since the last of all young ones. ``floor``
    is the fewest requests in flight of late: streams and long polls that are always there do not make a
    worker busy. ``quiet_s`` is how long no request has ended.
    """

    now: float
    new_objects: int
    new_passes: int
    in_flight: int
    floor: int
    quiet_s: float = 0.0
    rss: int = 0
    limit: int = 0

    @property
    def is_quiet(self) -> bool:
        """Say whether no more is in flight than always is."""
        return self.in_flight <= self.floor
