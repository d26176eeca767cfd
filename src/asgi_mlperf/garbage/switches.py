"""The process-wide switches of the collector: set, watched, and put back."""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("asgi_mlperf")

_OLDEST = 2


class Switches:
    """Holds thresholds, and notices when somebody else moves what is process-wide. Each is told once.

    Thresholds are set again. Whether the collector is enabled is left to whoever changed it: the
    schedule works either way. What somebody else froze stays frozen until the end.
    """

    def __init__(self) -> None:
        """Note what is found; nothing is changed."""
        self.found = gc.get_threshold()
        self._wanted = self._set = self.found
        self._enabled = gc.isenabled()
        self._told: set[str] = set()
        self._old_before = self._full_before = self._freezes_before = 0

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the thresholds back at the end of the block."""
        try:
            yield
        finally:
            gc.set_threshold(*self.found)

    def set(self, young: int, middle: int, old: int) -> None:
        """Set the thresholds, if they are not these already."""
        wanted = (young, middle, old)
        if wanted != self._wanted:
            self._wanted = wanted
            gc.set_threshold(*wanted)
            self._set = gc.get_threshold()  # the incremental collector does not keep the third

    def inspect(self, freezes: int) -> None:
        """Notice what others did since the last call; ``freezes`` is how often we froze so far."""
        self._inspect_thresholds()
        self._inspect_enabled()
        self._inspect_freeze(freezes)

    def _inspect_thresholds(self) -> None:
        thresholds = gc.get_threshold()
        if thresholds not in (self._set, self._wanted):
            self.tell("gc.set_threshold()", "the schedule's own are back; mode=freeze leaves them to you")
            gc.set_threshold(*self._wanted)

    def _inspect_enabled(self) -> None:
        enabled = gc.isenabled()
        if enabled != self._enabled:
            self._enabled = enabled
            if enabled:
                self.tell("gc.enable()", "the schedule stays as it is")
            else:
                self.tell("gc.disable()", "CPython cannot help when memory gets short until gc.enable()")

    def _inspect_freeze(self, freezes: int) -> None:
        # Only a full collection and a freeze reset this count; counting frozen objects would cost far more.
        full = _full_collections()
        old = gc.get_count()[_OLDEST]
        if full != _full_collections():
            return
        if old < self._old_before and full == self._full_before and freezes == self._freezes_before:
            self.tell("gc.freeze()", "what was garbage then stays; call it before the app starts, or never")
        self._old_before, self._full_before, self._freezes_before = old, full, freezes

    def tell(self, call: str, consequence: str) -> None:
        """Log, once for each ``call``, that somebody else made it."""
        if call not in self._told:
            self._told.add(call)
            log.warning("%s was called by something else while serving: %s", call, consequence)


def _full_collections() -> int:
    count: int = gc.get_stats()[_OLDEST]["collections"]
    return count
