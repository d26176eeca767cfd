"""Keeps what lives for ever out of every collection, and gives it back."""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("asgi_mlperf")

FROZEN_BY_INTERPRETER = 1_000
"""CPython 3.12 starts with some hundred frozen objects of its own, those that can never die."""


class Freezer:
    """Freezes the heap and unfreezes it, unless somebody else's frozen objects are in it.

    Theirs and ours could not be told apart later, so a heap found frozen is left as it is.
    """

    def __init__(self) -> None:
        """Begin without touching anything.

        ``objects`` are frozen, ``times`` is how often we froze, ``left_alone`` objects are alive at the
        start and are not frozen, as the heap is not ``available``.
        """
        self.objects = 0
        self.times = 0
        self.left_alone = 0
        self._found = gc.get_freeze_count()
        self.available = self._found <= FROZEN_BY_INTERPRETER

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Collect and freeze; at the end unfreeze, so that the freeze count is as it was found.

        The second collection finds nothing. It tells CPython that nothing is old, so that its own full
        collections, once they are re-armed, do not wait for a quarter of the frozen heap.
        """
        gc.collect()
        if not self.available:
            log.info("the heap was frozen before asgi-mlperf started; left as it is")
            self.left_alone = len(gc.get_objects())
        self.freeze(0)
        self.objects = gc.get_freeze_count()
        gc.collect()
        try:
            yield
        finally:
            self.thaw()
            if self.available and self._found:
                # CPython 3.12 moves objects that can never die back by itself when it collects.
                gc.collect()

    def freeze(self, objects: int) -> None:
        """Freeze what is alive, about ``objects`` of them: counting costs as much as a full collection."""
        if self.available:
            gc.freeze()
            self.times += 1
            self.objects += objects

    def thaw(self) -> int:
        """Unfreeze everything and return about how many objects that were."""
        if not self.available:
            return 0
        objects, self.objects = self.objects, 0
        gc.unfreeze()
        return objects

    def lost(self) -> bool:
        """Say whether somebody else unfroze the heap; counting costs as much as a full collection."""
        if self.objects <= FROZEN_BY_INTERPRETER or gc.get_freeze_count() > FROZEN_BY_INTERPRETER:
            return False
        self.objects = 0
        return True
