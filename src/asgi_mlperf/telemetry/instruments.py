"""Makes the series of a plugin: in memory, in the files of several processes, and for OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from asgi_mlperf.telemetry.files import File
from asgi_mlperf.telemetry.tallies import Tallies
from asgi_mlperf.telemetry.workers import several_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asgi_mlperf.hooks import Observer
    from asgi_mlperf.telemetry.opentelemetry import Mirror

Mode = Literal["livesum", "livemax"]
Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)
Kind_co = TypeVar("Kind_co", covariant=True)

_of_process: dict[str, Any] = {}
"""What this process writes to files: two instruments of one name would overwrite each other's counts."""


class Labelled(Protocol, Generic[Kind_co]):
    """An instrument with labels."""

    def labels(self, *values: str) -> Kind_co:
        """Return the instrument of these label values."""


class Settable(Protocol):
    """A gauge."""

    def set(self, value: float, /) -> None:
        """Show this value from now on."""


class Countable(Protocol):
    """A counter."""

    def inc(self, amount: float = 1, /) -> None:
        """Count."""


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


class _Shown:
    """A gauge that is read at a scrape: every batch sets two, and a lock for each would cost more."""

    __slots__ = ("_value",)

    def __init__(self, gauge: Gauge) -> None:
        self._value = 0.0
        gauge.set_function(self._read)

    def set(self, value: float) -> None:
        self._value = value

    def _read(self) -> float:
        return self._value


class _Both:
    """An instrument of ours and its mirror image."""

    def __init__(
        self, ours: Any, record: Callable[[float, dict[str, Any]], None], attributes: dict[str, Any]
    ) -> None:
        self._ours = ours
        self._record = record
        self._attributes = attributes

    def observe(self, amount: float) -> None:
        self._ours.observe(amount)
        self._record(amount, self._attributes)

    def inc(self, amount: float = 1) -> None:
        self._ours.inc(amount)
        self._record(amount, self._attributes)

    def set(self, value: float) -> None:
        self._ours.set(value)
        self._record(value, self._attributes)


class _Mirrored:
    """An instrument with labels that is mirrored."""

    def __init__(
        self,
        labels: Sequence[str],
        ours: Callable[..., Any],
        record: Callable[[float, dict[str, Any]], None] | None,
    ) -> None:
        self._labels = labels
        self._ours = ours
        self._record = record
        self._made: dict[tuple[str, ...], Any] = {}

    def labels(self, *values: str) -> Any:
        made = self._made.get(values)
        if made is None:
            made = self._ours(*values)
            if self._record is not None:
                from asgi_mlperf.telemetry.opentelemetry import attributes_of  # noqa: PLC0415 - an extra

                made = _Both(made, self._record, attributes_of(self._labels, values))
            self._made[values] = made
        return made


class Instruments:
    """Makes instruments in one registry; everything but counters is to be told from the event loop."""

    def __init__(self, mirror: Mirror | None = None) -> None:
        """Begin with an empty registry; ``mirror`` makes the same for OpenTelemetry."""
        self.registry = CollectorRegistry()
        self.mirror = mirror
        self._files: list[tuple[File, bool]] = []
        self._parts: dict[tuple[str, ...], Part] = {}
        self._shown: dict[tuple[str, ...], _Shown] = {}

    def histogram(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Labelled[Observer]:
        """Make a histogram."""
        made: Labelled[Observer]
        if several_processes():
            made = self.of_process(name, lambda: Histogram(name, text, labels, buckets=bounds, registry=None))
        else:
            made = Tallies(name, text, labels, bounds, self.registry)
        if self.mirror is None:
            return made
        return _Mirrored(labels, made.labels, self.mirror.histogram(name, text, bounds))

    def counter(self, name: str, text: str, labels: Sequence[str]) -> Labelled[Countable]:
        """Make a counter."""
        made = self.of_process(name, lambda: Counter(name, text, labels, registry=None))
        if self.mirror is None:
            return made
        return _Mirrored(labels, made.labels, self.mirror.counter(name, text))

    def gauge(
        self, name: str, text: str, labels: Sequence[str] = (), *, mode: Mode = "livesum"
    ) -> Callable[..., Settable]:
        """Return what gives the gauge of some label values; workers show their sum or their maximum."""
        gauge = self.of_process(
            name, lambda: Gauge(name, text, labels, registry=None, multiprocess_mode=mode)
        )

        def labelled(*values: str) -> Settable:
            child = gauge.labels(*values) if labels else gauge
            if not several_processes():
                key = name, *values
                if key not in self._shown:
                    self._shown[key] = _Shown(child)
                return self._shown[key]
            if mode == "livemax":
                return child
            return self._parts.setdefault((name, *values), Part(child))

        if self.mirror is None:
            return labelled
        return _Mirrored(labels, labelled, self.mirror.gauge(name, text)).labels

    def function(self, name: str, text: str, read: Callable[[], float]) -> Callable[[], None] | None:
        """Make a gauge that is read at a scrape; where files are scraped, return what writes it down."""
        if self.mirror is not None:
            self.mirror.function(name, text, read)
        if several_processes():
            gauge = self.of_process(
                name, lambda: Gauge(name, text, registry=None, multiprocess_mode="livesum")
            )
            part = self._parts.setdefault((name,), Part(gauge))
            return lambda: part.set(read())
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


def by_reason(counter: Labelled[Countable], name: str) -> Callable[[str], None]:
    """Return what counts one more of ``name``, for the reason that it is told."""
    counts: dict[str, Countable] = {}

    def count(reason: str) -> None:
        found = counts.get(reason)
        if found is None:
            found = counts[reason] = counter.labels(name, reason)
        found.inc()

    return count
