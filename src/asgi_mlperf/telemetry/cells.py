"""The three request histograms as one: what shares its labels is found once and counted by one call."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from asgi_mlperf.telemetry.files import FileTally, Named
from asgi_mlperf.telemetry.tallies import family_of, text_of_bounds
from asgi_mlperf.telemetry.workers import several_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from asgi_mlperf.hooks import Observer
    from asgi_mlperf.telemetry.instruments import Instruments
    from asgi_mlperf.telemetry.opentelemetry import Mirror

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_LABELS = ("http_request_method", "http_route", "http_response_status_code")
_DURATION = (
    "http_server_request_duration_seconds",
    "Time from the first look at a request to the last byte of its response.",
)
_RECEIVED = ("http_server_request_body_size_bytes", "Bytes of request bodies, as far as the app read them.")
_SENT = ("http_server_response_body_size_bytes", "Bytes of response bodies.")

Labels = tuple[str, str, str]
Trace = Callable[[], dict[str, str] | None]


class Cell(Protocol):
    """Counts the requests of one method, route and status."""

    def observe(self, seconds: float, received: int, sent: int, /) -> None:
        """Count one request: what it took, and the bytes of both bodies."""


class Cells(Protocol):
    """Gives the cell of each set of labels."""

    def cell(self, labels: Labels) -> Cell:
        """Return a new cell for labels that have none."""


def cells(bounds: tuple[float, ...], instruments: Instruments) -> Cells:
    """Return what counts durations within ``bounds`` (seconds) and sizes, shown with ``instruments``."""
    made: Cells
    if several_processes():
        made = _FileCells(bounds, instruments)
    else:
        mirror = instruments.mirror
        made = _MemoryCells(bounds, instruments.registry, None if mirror is None else mirror.trace)
    return made if instruments.mirror is None else _MirroredCells(made, bounds, instruments.mirror)


class _MemoryCell:
    """Counts without locks: only the event loop writes, and a scrape may read at any time."""

    __slots__ = (
        "_bounds",
        "_empty",
        "bytes_received",
        "bytes_sent",
        "durations",
        "received",
        "seconds",
        "sent",
    )

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.durations = [0] * (len(bounds) + 1)
        self.received = [0] * (len(SIZES) + 1)
        self.sent = [0] * (len(SIZES) + 1)
        self.seconds = 0.0
        self.bytes_received = self.bytes_sent = self._empty = 0

    def observe(self, seconds: float, received: int, sent: int) -> None:
        self.durations[bisect_left(self._bounds, seconds)] += 1
        self.seconds += seconds
        self.sent[bisect_left(SIZES, sent)] += 1
        self.bytes_sent += sent
        if received:
            self.received[bisect_left(SIZES, received)] += 1
            self.bytes_received += received

    def all_received(self) -> list[int]:
        """Return the counts of received bodies with the empty ones, which are not counted one by one.

        A request that is counted meanwhile may miss from them, and no count ever falls.
        """
        requests, counts = sum(self.durations), list(self.received)
        self._empty = max(self._empty, requests - sum(counts))
        counts[0] += self._empty
        return counts


class _TracedCell(_MemoryCell):
    """Keeps, for each bucket of the durations, the trace of the last request in it."""

    __slots__ = ("_trace", "exemplars")

    def __init__(self, bounds: tuple[float, ...], trace: Trace) -> None:
        super().__init__(bounds)
        self._trace = trace
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, seconds: float, received: int, sent: int) -> None:
        super().observe(seconds, received, sent)
        labels = self._trace()
        if labels is not None:
            self.exemplars[bisect_left(self._bounds, seconds)] = Exemplar(labels, seconds, time.time())


class _MemoryCells(Collector):
    def __init__(self, bounds: tuple[float, ...], registry: CollectorRegistry, trace: Trace | None) -> None:
        self._bounds = bounds
        self._trace = trace
        self._cells: dict[Labels, _MemoryCell] = {}
        registry.register(self)

    def cell(self, labels: Labels) -> Cell:
        trace, bounds = self._trace, self._bounds
        cell = self._cells[labels] = _MemoryCell(bounds) if trace is None else _TracedCell(bounds, trace)
        return cell

    def describe(self) -> Iterator[Metric]:
        for name in (_DURATION, _RECEIVED, _SENT):
            yield family_of(*name, _LABELS, (), ())

    def collect(self) -> Iterator[Metric]:
        cells = list(self._cells.items())
        durations, sizes = text_of_bounds(self._bounds), text_of_bounds(SIZES)
        exemplars: dict[tuple[str, ...], dict[int, Exemplar]] = {
            key: dict(c.exemplars) for key, c in cells if isinstance(c, _TracedCell)
        }
        yield family_of(
            *_DURATION, _LABELS, durations, ((key, c.durations, c.seconds) for key, c in cells), exemplars
        )
        yield family_of(
            *_RECEIVED, _LABELS, sizes, ((key, c.all_received(), c.bytes_received) for key, c in cells)
        )
        yield family_of(*_SENT, _LABELS, sizes, ((key, c.sent, c.bytes_sent) for key, c in cells))


class _FileCell:
    """Counts in a file, which outlives the process."""

    __slots__ = ("_durations", "_received", "_sent")

    def __init__(self, durations: Observer, received: Observer, sent: Observer) -> None:
        self._durations = durations
        self._received = received
        self._sent = sent

    def observe(self, seconds: float, received: int, sent: int) -> None:
        self._durations.observe(seconds)
        self._received.observe(received)
        self._sent.observe(sent)


class _FileCells:
    def __init__(self, bounds: tuple[float, ...], instruments: Instruments) -> None:
        self._bounds = bounds
        self._file = instruments.file("histogram", keep=True)
        instruments.registry.register(
            Named(*(family_of(*name, _LABELS, (), ()) for name in (_DURATION, _RECEIVED, _SENT)))
        )

    def cell(self, labels: Labels) -> Cell:
        durations, received, sent = (
            FileTally(self._file, *name, _LABELS, labels, bounds)
            for name, bounds in ((_DURATION, self._bounds), (_RECEIVED, SIZES), (_SENT, SIZES))
        )
        return _FileCell(durations, received, sent)


class _MirroredCells:
    """Cells that tell OpenTelemetry as well."""

    def __init__(self, ours: Cells, bounds: tuple[float, ...], mirror: Mirror) -> None:
        self._ours = ours
        self._records = tuple(
            mirror.histogram(*name, buckets)
            for name, buckets in ((_DURATION, bounds), (_RECEIVED, SIZES), (_SENT, SIZES))
        )

    def cell(self, labels: Labels) -> Cell:
        from asgi_mlperf.telemetry.opentelemetry import attributes_of  # noqa: PLC0415 - an extra

        ours, attributes, records = self._ours.cell(labels), attributes_of(_LABELS, labels), self._records

        class Both:
            @staticmethod
            def observe(seconds: float, received: int, sent: int) -> None:
                ours.observe(seconds, received, sent)
                for record, amount in zip(records, (seconds, received, sent), strict=True):
                    if record is not None:
                        record(amount, attributes)

        return Both()
