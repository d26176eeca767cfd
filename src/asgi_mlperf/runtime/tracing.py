"""What is told of single requests, put together from the settings."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.telemetry.explained import Explainer, SecretHeader, SlowLog
from asgi_mlperf.telemetry.neighbours import neighbour_of
from asgi_mlperf.telemetry.request_ids import in_log_records, with_request_id
from asgi_mlperf.telemetry.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Message

    from asgi_mlperf.garbage.pauses import Pause
    from asgi_mlperf.hooks import Closer, Exchange, ModelCall, Observer
    from asgi_mlperf.runtime.process import Process
    from asgi_mlperf.telemetry.loop_lag import LoopLag
    from asgi_mlperf.telemetry.opentelemetry import Mirror
    from asgi_mlperf.telemetry.tracing import TracingSettings


log = logging.getLogger("asgi_mlperf")


class Tracing:
    """What is called for single requests; nothing at all unless the settings ask for it."""

    def __init__(self) -> None:
        """Begin with nothing to call."""
        self.starters: tuple[Callable[[Exchange, Message], Message], ...] = ()
        self.closers: tuple[Closer, ...] = ()
        self.called: Callable[[ModelCall], None] | None = None
        self.lag: Timeline | None = None
        self.loop_lag: LoopLag | None = None

    def calls(self, observer: Callable[[ModelCall], None]) -> None:
        """Tell one more observer of model calls."""
        first = self.called
        if first is None:
            self.called = observer
            return

        def both(call: ModelCall) -> None:
            first(call)
            observer(call)

        self.called = both

    def late_s(self) -> float:
        """Return by how much the event loop is late just now."""
        return 0.0 if self.loop_lag is None else self.loop_lag.late_s()


@contextmanager
def tracing(process: Process, route_of: Callable[[Exchange], str]) -> Iterator[Tracing]:
    """Trace inside this block what the settings ask for."""
    settings, told = process.settings.tracing, Tracing()
    with ExitStack() as stack:
        if settings.request_id:
            stack.enter_context(in_log_records())
            told.starters += (with_request_id,)
        if settings.explains:
            _explain(process, route_of, told, stack.enter_context(_pauses(process)))
        if settings.otel:
            told.calls(_opentelemetry().Spans(process.clock).called)
        yield told


def mirror_of(settings: TracingSettings, app: Any) -> Mirror | None:
    """Return what tells OpenTelemetry our measurements, but for those that others tell it of ``app``.

    Raises ``ConfigurationError`` where it is asked for and not installed.
    """
    if not settings.otel:
        return None
    neighbour = neighbour_of(app)
    left_out = frozenset() if neighbour is None else neighbour.series
    if neighbour is not None:
        log.info("%s are left to %s in OpenTelemetry", ", ".join(sorted(left_out)), neighbour.name)
    mirror: Mirror = _opentelemetry().Mirror(left_out=left_out)
    return mirror


def _opentelemetry() -> Any:
    try:
        from asgi_mlperf.telemetry import opentelemetry  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            "ASGI_MLPERF_TRACING__OTEL needs OpenTelemetry's API: pip install 'asgi-mlperf[otel]'"
        ) from None
    return opentelemetry


def _explain(process: Process, route_of: Callable[[Exchange], str], told: Tracing, pauses: Timeline) -> None:
    settings = process.settings.tracing
    told.lag = Timeline()
    explainer = Explainer(clock=process.clock, gc=pauses, lag=told.lag, late=told.late_s)
    told.calls(explainer.called)
    if settings.server_timing:
        told.starters += (explainer.with_timing,)
    elif settings.server_timing_secret is not None:
        secret = SecretHeader(settings.server_timing_secret.get_secret_value())

        def for_who_knows(exchange: Exchange, start: Message) -> Message:
            return explainer.with_timing(exchange, start) if secret.is_in(exchange) else start

        told.starters += (for_who_knows,)
    if settings.slow_ms is not None:
        slow = SlowLog(explainer, threshold_s=settings.slow_ms / 1000, route_of=route_of, clock=process.clock)
        told.closers += (slow.ended,)


@contextmanager
def _pauses(process: Process) -> Iterator[Timeline]:
    timeline, clock = Timeline(), process.clock

    def note(pause: Pause) -> None:
        timeline.note(clock(), pause.seconds)

    process.pauses.listeners.append(note)
    try:
        yield timeline
    finally:
        process.pauses.listeners.remove(note)


class Noted:
    """An observer of losses that also keeps when they were."""

    def __init__(self, observer: Observer, timeline: Timeline, clock: Callable[[], float]) -> None:
        """Pass on to ``observer``, and note in ``timeline``."""
        self._observer = observer
        self._timeline = timeline
        self._clock = clock

    def observe(self, seconds: float) -> None:
        """Take a loss that has just ended."""
        self._observer.observe(seconds)
        self._timeline.note(self._clock(), seconds)
