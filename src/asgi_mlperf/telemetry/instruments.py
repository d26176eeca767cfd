"""Makes the series of a plugin, in memory or in the files of several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from asgi_mlperf.telemetry.files import File
from asgi_mlperf.telemetry.tallies import Tallies
from asgi_mlperf.telemetry.workers import several_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asgi_mlperf.hooks import Observer

Mode = Literal["livesum", "livemax"]
Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)

_of_process: dict[str, Any] = {}
"""What this process writes to files: two instruments of one name would overwrite each other's counts."""


class Labelled(Protocol):
    """A histogram with labels: gives the observer of one set of label values."""

    def labels(self, *values: str) -> Observer:
        """Return what observes for these label values, the same each time."""


class Settable(Protocol):
    """A gauge."""

    def set(self, value: float, /) -> None:
        """Show this value from now on."""


class Part:
    """One plugin's part of a gauge that every plugin of the process adds to."""

    __slots__ = ("_gauge", "_value")

    def __init__(self, gauge: Gauge) -> None:
        """Begin with nothing."""
        self._gauge = gauge
        self._value = 0.0

    def set(self, value: float) -> None:
        """Be this much of the whole."""
        self._gauge.inc(value - self._value)
        self._value = value


class Instruments:
    """Makes instruments in one registry; everything but counters is to be told from the event loop."""

    def __init__(self) -> None:
        """Begin with an empty registry."""
        self.registry = CollectorRegistry()
        self._files: list[tuple[File, bool]] = []
        self._parts: dict[tuple[str, ...], Part] = {}

    def histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Labelled:
        """Make a histogram."""
        if not several_processes():
            return Tallies(name, text, labels, bounds, self.registry)
        return self.of_process(name, lambda: Histogram(name, text, labels, buckets=bounds, registry=None))

    def counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        """Make a counter."""
        return self.of_process(name, lambda: Counter(name, text, labels, registry=None))

    def gauge(
        self, name: str, text: str, labels: Sequence[str] = (), *, mode: Mode = "livesum"
    ) -> Callable[..., Settable]:
        """Return what gives the gauge of some label values; workers show their sum or their maximum."""
        gauge = self.of_process(
            name, lambda: Gauge(name, text, labels, registry=None, multiprocess_mode=mode)
        )

        def labelled(*values: str) -> Settable:
            child = gauge.labels(*values) if labels else gauge
            if not several_processes() or mode == "livemax":
                return child
            return self._parts.setdefault((name, *values), Part(child))

        return labelled

    def function(self, name: str, text: str, read: Callable[[], float]) -> Callable[[], None] | None:
        """Make a gauge that is read at a scrape; where files are scraped, return what writes it down."""
        if several_processes():
            gauge = self.gauge(name, text)()
            return lambda: gauge.set(read())
        Gauge(name, text, registry=self.registry).set_function(read)
        return None

    def of_process(self, name: str, make: Callable[[], Instrument]) -> Instrument:
        """Return a new instrument, or the one of this process where it writes to files."""
        if not several_processes():
            instrument = make()
        else:
            if name not in _of_process:
                _of_process[name] = make()
            instrument = _of_process[name]
        self.registry.register(instrument)
        return instrument

    def file(self, kind: str, *, keep: bool) -> File:
        """Return a new file of this plugin's own, closed with it; ``keep`` leaves its values there."""
        file = File(kind)
        self._files.append((file, keep))
        return file

    def close(self) -> None:
        """Take this plugin's part out of every gauge, and close its files."""
        for file, keep in self._files:
            file.close(keep=keep)
        for part in self._parts.values():
            part.set(0.0)
