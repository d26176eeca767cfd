"""Metrics of several worker processes, added up through prometheus-client's files."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Instrument = TypeVar("Instrument")

_shared: dict[str, Any] = {}
"""The instruments of this process: two with the same file would overwrite each other's counts."""


def several_processes() -> bool:
    """Say whether prometheus-client adds up the metrics of several processes.

    It asks its variable when it is imported, and so it stays.
    """
    return values.ValueClass is not values.MutexValue and "PROMETHEUS_MULTIPROC_DIR" in os.environ


def of_process(name: str, make: Callable[[], Instrument]) -> Instrument:
    """Return the one instrument of that name in this process."""
    if name not in _shared:
        _shared[name] = make()
    instrument: Instrument = _shared[name]
    return instrument


@contextmanager
def workers_end() -> Iterator[None]:
    """Take this worker's gauges out of prometheus-client's multi-process files after this block."""
    try:
        yield
    finally:
        if several_processes():
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call] # prometheus-client's is untyped
