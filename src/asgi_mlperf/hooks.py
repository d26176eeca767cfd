"""What the middleware and the wings agree on, so that neither imports the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from asgi_mlperf.exchange import Closer, Exchange, Opener, Traffic, current_exchange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp, Message, Scope

__all__ = [
    "BatchObservers",
    "Clock",
    "Closer",
    "Exchange",
    "ModelCall",
    "Observer",
    "Opener",
    "PoolObservers",
    "Serving",
    "Traffic",
    "current_exchange",
]

Clock = Callable[[], float]
"""Seconds from an arbitrary start, never going back."""


class Observer(Protocol):
    """Takes measurements one by one; what becomes of them is the owner's business."""

    def observe(self, amount: float, /) -> None:
        """Take one measurement, in the unit that the owner's name says."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One model call that is over for its caller: result, error or given up.

    Times are seconds on the runtime's clock; ``started_at`` is 0 if it never started. ``batch_size`` is 0 for
    a call that was not batched; ``behind`` says what ran and waited when it had to wait, else nothing.
    """

    name: str
    pool: str
    queued_at: float
    started_at: float
    ended_at: float
    batch_size: int
    behind: str


@dataclass(frozen=True, slots=True)
class PoolObservers:
    """Where a pool's measurements go.

    Seconds waited, of several calls at once, and run, calls waiting and running, and calls refused or
    abandoned, by reason; ``called`` is told of each call, in its caller's context, where anybody wants to
    know.
    """

    waited: Callable[[Sequence[float]], None]
    run: Observer
    queue_length: Callable[[int], None]
    running: Callable[[int], None]
    refused: Callable[[str], None]
    abandoned: Callable[[str], None]
    called: Callable[[ModelCall], None] | None = None


@dataclass(frozen=True, slots=True)
class BatchObservers:
    """Where the measurements of one batched function go.

    Items per batch, the seconds from the arrival of each of its items to its start, seconds run, why a batch
    held no more, the share of a padded batch that is padding, where batches run, and new starts after a
    failure of the dispatcher.
    """

    size: Observer
    lingered: Callable[[Sequence[float]], None]
    run: Observer
    closed: Callable[[str], None]
    padding: Callable[[float], None]
    executor: Callable[[str], None]
    restarted: Callable[[], None]


_ANSWERED = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Serving:
    """What the middleware works with while a plugin runs on an event loop."""

    clock: Clock
    traffic: Traffic
    endpoints: Mapping[str, ASGIApp]
    openers: tuple[Opener, ...] = ()
    closers: tuple[Closer, ...] = ()
    starters: tuple[Callable[[Exchange, Message], Message], ...] = ()
    websocket: Callable[[Scope], AbstractContextManager[None]] | None = None
    afterwards: tuple[Callable[[Exchange, float], None], ...] = ()

    def endpoint(self, scope: Scope) -> ASGIApp | None:
        """Return the plugin's own answer to a request, if it is for the plugin."""
        path, root_path = scope["path"], scope.get("root_path")
        if root_path and path.startswith(root_path):
            path = "/" + path[len(root_path) :].lstrip("/")
        endpoint = self.endpoints.get(path)
        return endpoint if endpoint is None or scope["method"] in _ANSWERED else None
