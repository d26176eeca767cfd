"""Request counts in a file of prometheus-client's format that this plugin alone writes.

prometheus-client's own values take a lock, look at the process id and look up their key for every number,
and two plugins of one process would overwrite each other's. A file of one's own needs none of that, its
collector adds it to the others, and what is written outlives the process, however it ends.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.metrics_core import Metric

_serial = itertools.count()


class File:
    """A new file among those of ``PROMETHEUS_MULTIPROC_DIR``, for one thread to write."""

    def __init__(self, kind: str) -> None:
        """Create a file of ``kind``: ``histogram``, or ``gauge_`` and how workers are put together."""
        name = f"{kind}_requests-{next(_serial)}_{os.getpid()}.db"
        self._path = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / name
        self._path.unlink(missing_ok=True)  # left by a process that had the same id
        self._values = MmapedDict(str(self._path))  # type: ignore[no-untyped-call] # prometheus-client's is untyped
        self.write: Callable[[str, float, float], None] = self._values.write_value

    def key(self, name: str, suffix: str, labels: Sequence[str], values: Sequence[str], text: str) -> str:
        """Return the key of a value, which is 0 until it is written."""
        key: str = mmap_key(name, name + suffix, list(labels), list(values), text)
        self.write(key, 0.0, 0.0)
        return key

    def close(self, *, keep: bool) -> None:
        """Write no more; ``keep`` leaves the values to be added up."""
        self._values.close()  # type: ignore[no-untyped-call] # as above
        if not keep:
            self._path.unlink(missing_ok=True)


class FileTally:
    """The counts of one histogram for one set of label values, in memory and in a file."""

    __slots__ = ("_bounds", "_bucket_keys", "_counts", "_sum_key", "_total", "_write")

    def __init__(
        self,
        file: File,
        name: str,
        text: str,
        labels: tuple[str, ...],
        values: tuple[str, ...],
        bounds: tuple[float, ...],
    ) -> None:
        """Begin with nothing counted."""
        self._write = file.write
        self._bounds = bounds
        self._counts = [0.0] * (len(bounds) + 1)
        self._total = 0.0
        self._sum_key = file.key(name, "_sum", labels, values, text)
        self._bucket_keys = [
            file.key(name, "_bucket", (*labels, "le"), (*values, bound), text)
            for bound in (*map(floatToGoString, bounds), "+Inf")
        ]

    def observe(self, amount: float) -> None:
        """Count one measurement."""
        bucket = bisect_left(self._bounds, amount)
        self._counts[bucket] = count = self._counts[bucket] + 1.0
        self._write(self._bucket_keys[bucket], count, 0.0)
        if amount:
            self._total = total = self._total + amount
            self._write(self._sum_key, total, 0.0)


class Named(Collector):
    """Stands in a registry for series that are in a file."""

    def __init__(self, *families: Metric) -> None:
        """Take the families, without samples."""
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._families
