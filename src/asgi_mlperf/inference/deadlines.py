"""Until when a result is of use: from the call, the request's headers and the call around it."""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asgi_mlperf.hooks import Exchange

_ENVOY = b"x-envoy-expected-rq-timeout-ms"
_GRPC = b"grpc-timeout"
STANDARD = frozenset({_ENVOY, _GRPC})
"""Headers that state a deadline wherever they come from."""
_GRPC_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_LONGEST_DIGITS = 10
_NAME = itemgetter(0)

clock = time.perf_counter
"""The clock of every deadline, in seconds: one for the process, so that a deadline can be handed on."""

current_deadline: ContextVar[float] = ContextVar("current_deadline", default=math.inf)
"""The deadline of the model call that the running code is part of, on ``clock``; ``inf``: none."""


def time_left() -> float:
    """Return the seconds until the deadline of the running model call; ``inf`` without one, never below 0.

    For functions under ``Plugin.run`` and coroutines they call back: what is left can be passed on to
    whatever they call.
    """
    return max(0.0, current_deadline.get() - clock())


def deadline_of(exchange: Exchange | None, headers: frozenset[bytes]) -> float:
    """Return the deadline that a request's ``headers`` state, ``inf`` without one.

    Their values are milliseconds, as are Envoy's ``x-envoy-expected-rq-timeout-ms``, or those of
    ``grpc-timeout``, counted from the first look at the request; the nearest wins. What cannot be read
    is no deadline.
    """
    if exchange is None or exchange.ended:
        return math.inf
    sent = exchange.scope["headers"]
    if headers.isdisjoint(map(_NAME, sent)):  # as most are, and this is seen in half the time of the loop
        return math.inf
    seconds = math.inf
    for name, value in sent:
        if name in headers:
            seconds = min(seconds, _grpc(value) if name == _GRPC else _milliseconds(value))
    return exchange.started_at + seconds


def _milliseconds(value: bytes) -> float:
    readable = value.isdigit() and len(value) <= _LONGEST_DIGITS
    return int(value) / 1000 if readable else math.inf


def _grpc(value: bytes) -> float:
    unit = _GRPC_UNITS.get(value[-1:], math.inf)
    readable = value[:-1].isdigit() and len(value) <= _LONGEST_DIGITS
    return int(value[:-1]) * unit if readable else math.inf
