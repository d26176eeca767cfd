"""Where the time of one request went: in a ``Server-Timing`` header, and in a log line if it was slow."""

from __future__ import annotations

import hmac
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asgi_mlperf.exchange import Notes
from asgi_mlperf.hooks import current_exchange
from asgi_mlperf.telemetry.request_ids import request_id_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message

    from asgi_mlperf.hooks import Clock, Exchange, ModelCall
    from asgi_mlperf.telemetry.timeline import Timeline

log = logging.getLogger("asgi_mlperf.slow")

_LINES_A_SECOND = 10
_NAMED = 5


class Account:
    """What a request spent on model calls, in seconds."""

    __slots__ = ("batch_size", "behind", "calls", "queue", "run")

    def __init__(self) -> None:
        """Begin with nothing spent."""
        self.calls = self.batch_size = 0
        self.queue = self.run = 0.0
        self.behind: list[str] = []


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the time of a request went, in seconds; parts may overlap, as calls may."""

    total: float
    queue: float
    run: float
    encode: float
    gc: float
    lag: float
    calls: int
    batch_size: int
    behind: tuple[str, ...]

    def header(self) -> bytes:
        """Write it as ``Server-Timing`` has it; what took no time is left out."""
        parts = [
            f"{name};dur={seconds * 1e3:.3f}"
            for name in ("total", "queue", "run", "gc", "lag", "encode")
            if (seconds := getattr(self, name))
        ]
        if self.batch_size:
            parts.append(f'batch;desc="{self.batch_size}"')
        return ", ".join(parts).encode()

    def fields(self) -> dict[str, Any]:
        """Write it as the fields of a log line."""
        times = {
            f"{name}_ms": round(getattr(self, name) * 1e3, 3)
            for name in ("total", "queue", "run", "encode", "gc", "lag")
        }
        return {**times, "calls": self.calls, "batch_size": self.batch_size, "behind": "; ".join(self.behind)}


class Explainer:
    """Keeps the accounts of requests, and explains them.

    ``gc`` and ``lag`` are what the collector and blocked loops cost whom it may concern; ``late`` gives the
    seconds by which the event loop's next look at the clock is overdue.
    """

    def __init__(self, *, clock: Clock, gc: Timeline, lag: Timeline, late: Callable[[], float]) -> None:
        """Begin without an account."""
        self._clock = clock
        self._gc = gc
        self._lag = lag
        self._late = late

    def called(self, call: ModelCall) -> None:
        """Put a model call that has ended down to the request that made it."""
        exchange = current_exchange.get()
        if exchange is None or exchange.ended:
            return
        account = account_of(exchange)
        account.calls += 1
        account.queue += (call.started_at or call.ended_at) - call.queued_at
        account.run += call.ended_at - call.started_at if call.started_at else 0.0
        account.batch_size = max(account.batch_size, call.batch_size)
        if call.behind and len(account.behind) < _NAMED:
            account.behind.append(f"{call.name} in {call.pool}: {call.behind}")

    def explain(self, exchange: Exchange, until: float) -> Explanation:
        """Explain a request as far as it went at ``until``, on the runtime's clock."""
        notes = exchange.notes or _NOTHING
        account = notes.account or _NO_CALLS
        began = exchange.started_at
        late = min(self._late(), until - began)
        return Explanation(
            total=until - began,
            queue=account.queue,
            run=account.run,
            encode=sum(seconds for _, seconds in exchange.encodings),
            gc=self._gc.between(began, until),
            lag=self._lag.between(began, until) + max(0.0, late),
            calls=account.calls,
            batch_size=account.batch_size,
            behind=tuple(account.behind),
        )

    def with_timing(self, exchange: Exchange, start: Message) -> Message:
        """Return the start of a response with the explanation so far among its headers."""
        header = (b"server-timing", self.explain(exchange, self._clock()).header())
        return {**start, "headers": [*start.get("headers", ()), header]}


def account_of(exchange: Exchange) -> Account:
    """Return the account of a request, opened if it has none."""
    notes = exchange.noted()
    account: Account | None = notes.account
    if account is None:
        account = notes.account = Account()
    return account


_NOTHING, _NO_CALLS = Notes(), Account()


class SecretHeader:
    """A request header whose value only some know: asks for what others do not get."""

    def __init__(self, text: str) -> None:
        """Take ``name: value``."""
        name, _, value = text.partition(":")
        self._name = name.strip().lower().encode()
        self._value = value.strip().encode()

    def is_in(self, exchange: Exchange) -> bool:
        """Say whether a request has the header, in a time that tells nothing of the value."""
        return any(
            name == self._name and hmac.compare_digest(value, self._value)
            for name, value in exchange.scope.get("headers", ())
        )


class SlowLog:
    """Writes a line for each request beyond a threshold, a few a second at most."""

    def __init__(
        self, explainer: Explainer, *, threshold_s: float, route_of: Callable[[Exchange], str], clock: Clock
    ) -> None:
        """Write of requests whose response, or a stream's first byte, took ``threshold_s`` or more."""
        self._explainer = explainer
        self._threshold_s = threshold_s
        self._route_of = route_of
        self._clock = clock
        self._second = -math.inf
        self._lines = self._left_out = 0

    def ended(self, exchange: Exchange) -> None:
        """Look at a request that has ended."""
        until = exchange.streamed_at or exchange.ended_at
        if until - exchange.started_at >= self._threshold_s and self._may_write():
            self._write(exchange, until)

    def _may_write(self) -> bool:
        now = self._clock()
        if now - self._second >= 1.0:
            if self._left_out:
                log.warning("%d more slow requests were not written of", self._left_out)
            self._second, self._lines, self._left_out = now, 0, 0
        self._lines += 1
        if self._lines <= _LINES_A_SECOND:
            return True
        self._left_out += 1
        return False

    def _write(self, exchange: Exchange, until: float) -> None:
        scope = exchange.scope
        fields = {
            "request_id": request_id_of(exchange),
            "method": scope["method"],
            "route": self._route_of(exchange),
            "status": exchange.status,
            **self._explainer.explain(exchange, until).fields(),
        }
        text = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        log.warning("slow request: %s", text, extra={"slow_request": fields})


def _quoted(value: Any) -> str:
    text = str(value)
    return (
        text if text and text.isascii() and text.isprintable() and not set(text) & set(' "=') else repr(text)
    )
