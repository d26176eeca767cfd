"""Where a batch runs: on the event loop while that surely is quick, else on a thread.

A hand-over to a thread and back costs more than a small model, but what runs on the loop holds up everything
else there. So a function runs there only once its batches on threads have shown that it may.
"""

from __future__ import annotations

import math
import resource
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

from asgi_mlperf.inference.costs import BatchCost

if TYPE_CHECKING:
    from collections.abc import Callable

_TRIED = 4
_DEVIATIONS = 2
_STRETCH = 2
_DEARER = 1.25
_DEAR_S = 0.001  # a hand-over to a thread and back is a tenth of it at the most
_BLOCKED_SHARE = 0.01
_FORGIVEN_S = 0.1
_WAITS = 0.3
_WAITS_WEIGHT = 0.1
_OVERLAP_PAYS = 0.25
_OVERLAP_WEIGHT = 0.1
_SLEEPS = 0.25
_SLEEPS_WEIGHT = 0.05
_FORGETS_WEIGHT = 0.005
_LOOP_WEIGHT = 0.1
_OF_THREAD = getattr(resource, "RUSAGE_THREAD", None)  # Linux has it


class Meter:
    """Takes the time of one run, in the thread where it runs.

    ``cpu_s`` is the thread's own, ``waited`` says whether it gave up its CPU of its own accord: it slept, or
    waited for I/O or a lock. Where the platform cannot tell, all of it counts as waiting. ``beside_s`` is
    what the clock ``beside`` counted meanwhile, such as the CPU time of the event loop's thread.
    """

    __slots__ = ("_began", "_beside", "_cpu", "_voluntary", "_wall", "beside_s", "cpu_s", "waited", "wall_s")

    def __init__(self, beside: Callable[[], float] = lambda: 0.0) -> None:
        """Prepare."""
        self._beside = beside

    def start(self) -> None:
        """Begin."""
        self._cpu, self._voluntary = _usage()
        self._began = self._beside()
        self._wall = time.perf_counter()

    def stop(self) -> None:
        """End, in the same thread."""
        self.wall_s = time.perf_counter() - self._wall
        self.beside_s = self._beside() - self._began
        cpu, voluntary = _usage()
        self.cpu_s = cpu - self._cpu
        self.waited = voluntary != self._voluntary


def _usage() -> tuple[float, int]:
    # The times in getrusage are as old as the last tick of the scheduler, up to 10 ms: not of one batch.
    voluntary = time.perf_counter_ns() if _OF_THREAD is None else resource.getrusage(_OF_THREAD).ru_nvcsw
    return time.thread_time(), voluntary


def cpu_clock_of_this_thread() -> Callable[[], float]:
    """Return a clock, for any thread, of the CPU seconds of this one; it stands still where there is none."""
    if not hasattr(time, "pthread_getcpuclockid"):  # pragma: no cover - as on macOS
        return lambda: 0.0
    return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))


class Placement(Protocol):
    """Says where the next batch runs, and may learn from each."""

    metered: bool

    @property
    def most_on_threads(self) -> float:
        """How many batches of the function may run on threads at once."""

    def meter(self, size: float) -> Meter:
        """Return what measures a batch that begins now, where it is ``metered``."""

    def room(self, least: float, wanted: float, *, is_full: bool = False) -> float:
        """Return how large a batch may be that runs inline, 0 to use a thread.

        ``wanted`` is the size of what waits, ``least`` that of its first item alone; ``is_full`` says that a
        batch cannot hold more.
        """

    def observe(self, size: float, meter: Meter, *, inline: bool) -> None:
        """Learn from one batch."""


class FixedPlacement:
    """Every batch inline, or none."""

    metered = False
    most_on_threads = math.inf

    def __init__(self, *, inline: bool) -> None:
        """Decide once."""
        self._room = math.inf if inline else 0.0

    def meter(self, size: float) -> Meter:  # noqa: ARG002 - part of Placement
        """Return what measures nothing beside."""
        return Meter()

    def room(self, least: float, wanted: float, *, is_full: bool = False) -> float:  # noqa: ARG002 - part of Placement
        """Return all or nothing."""
        return self._room

    def observe(self, size: float, meter: Meter, *, inline: bool) -> None:
        """Learn nothing: it is not asked to."""


class AutoPlacement:
    """Chooses from what the batches took: inline while one surely stays within ``budget_s`` seconds.

    - Four batches on threads come first, and no batch is more than double the size of any that kept to it.
    - An item's share of its batch must be a millisecond at the most: beyond that a thread hardly costs more.
    - What is expected, with twice the mean deviation added, must be within the budget; a batch may be cut to
      that, unless smaller batches would cost a quarter more for each item.
    - Batches that overran the budget are followed by threads for a hundred times what they took too long, as
      far as that is more than 0.1 s: so the time by which the loop is held too long stays below a hundredth,
      and a millisecond.

    The time of a thread's CPU counts where most of a run is that, since a thread's clock also shows the turns
    of others; for functions that wait, the clock.
    """

    metered = True

    def __init__(
        self,
        budget_s: float,
        *,
        clock: Callable[[], float],
        spare_cpus: int = 0,
        loop_cpu: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Begin on threads; ``loop_cpu`` counts the event loop's own CPU seconds."""
        self._budget_s = budget_s
        self._clock = clock
        self._spare_cpus = spare_cpus
        self._loop_cpu = loop_cpu
        self._overlap = 1.0
        self._cpu_s = self._wall_s = 0.0
        self._loop_seen = loop_cpu()
        self._loop_each = 0.0
        self._cost = BatchCost()
        self._largest = 0.0
        self._waits = 1.0  # until seen otherwise
        self._first = True
        self._not_before = -math.inf

    @property
    def most_on_threads(self) -> float:
        """As many as there are CPUs besides the event loop's, while those keep up with the loop.

        What mostly sleeps keeps no CPU busy: others may run meanwhile.
        """
        sleeps = self._cpu_s < _SLEEPS * self._wall_s
        if not self._spare_cpus or self._cost.seen < _TRIED or sleeps:
            return math.inf
        keep_up = 0 < self._cost.each <= self._spare_cpus * self._loop_each
        return self._spare_cpus if keep_up else math.inf

    def meter(self, size: float) -> Meter:
        """Return what measures a batch that begins now."""
        now = self._loop_cpu()
        if size:
            self._loop_each += _LOOP_WEIGHT * ((now - self._loop_seen) / size - self._loop_each)
        self._loop_seen = now
        return Meter(self._loop_cpu)

    def room(self, least: float, wanted: float, *, is_full: bool = False) -> float:
        """Return how large a batch may be that runs inline, 0 to use a thread.

        ``wanted`` is the size of what waits, ``least`` that of its first item alone; ``is_full`` says that a
        batch cannot hold more.
        """
        threads_pay = self._spare_cpus > 0 and self._overlap > _OVERLAP_PAYS
        if is_full and threads_pay:
            return 0.0
        if self._cost.seen < _TRIED or self._clock() < self._not_before:
            return 0.0
        if self._cost.each * least > _DEAR_S:
            return 0.0
        fits = min(self._cost.largest_within(self._budget_s, _DEVIATIONS), _STRETCH * self._largest)
        if fits >= wanted:
            return fits
        if fits < least or threads_pay:
            return 0.0
        dearer = self._cost.mean(fits) / fits > _DEARER * self._cost.mean(wanted) / wanted
        return 0.0 if dearer else fits

    def observe(self, size: float, meter: Meter, *, inline: bool) -> None:
        """Learn from one batch."""
        if self._first:
            self._first = False  # loads, compiles, warms up
            return
        self._learn_overlap(meter, inline=inline)
        waits = meter.waited and meter.cpu_s < meter.wall_s / 2
        self._waits += _WAITS_WEIGHT * (waits - self._waits)
        waits = waits and (inline or self._waits > _WAITS)
        seconds = meter.wall_s if waits else min(meter.wall_s, meter.cpu_s)
        self._cost.observe(size, seconds)
        if seconds <= self._budget_s:
            self._largest = max(self._largest, size)
        elif inline:
            owed_s = (seconds - self._budget_s) / _BLOCKED_SHARE
            self._not_before = max(self._not_before, self._clock() - _FORGIVEN_S) + owed_s

    def _learn_overlap(self, meter: Meter, *, inline: bool) -> None:
        if inline:
            self._loop_seen += meter.cpu_s
            self._overlap += _FORGETS_WEIGHT * (1 - self._overlap)
        elif meter.wall_s:
            self._cpu_s += _SLEEPS_WEIGHT * (meter.cpu_s - self._cpu_s)
            self._wall_s += _SLEEPS_WEIGHT * (meter.wall_s - self._wall_s)
            share = min(1.0, meter.beside_s / meter.wall_s)
            self._overlap += _OVERLAP_WEIGHT * (share - self._overlap)
