"""What the middleware and the wings agree on, so that neither imports the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Scope, Send

Clock = Callable[[], float]
"""Seconds from an arbitrary start, never going back."""


class Observer(Protocol):
    """Takes measurements one by one; what becomes of them is the owner's business."""

    def observe(self, amount: float, /) -> None:
        """Take one measurement, in the unit that the owner's name says."""


@dataclass(frozen=True, slots=True)
class PoolObservers:
    """Where a pool's measurements go: seconds waited, seconds run, entries waiting, refusals by reason."""

    wait: Observer
    run: Observer
    queue_length: Callable[[int], None]
    refused: Callable[[str], None]


CLIENT_LEFT = 499
"""The status, as nginx has it, of a request whose client left before the response was complete."""


class Traffic:
    """How many requests are in flight, kept by the middleware and read by whoever needs it."""

    __slots__ = ("in_flight",)

    def __init__(self) -> None:
        """Begin with none."""
        self.in_flight = 0


class Exchange:
    """One HTTP request and its response, from the first look to the final body message.

    ``status`` is the status sent, or what the client will see when nothing was sent: 500 after an
    exception, 499 after the client left. ``root_path`` is the one the app was called with; mounts on the
    way change the one in the scope.
    """

    __slots__ = (
        "_closers",
        "_send",
        "_traffic",
        "_trailers",
        "ended",
        "root_path",
        "scope",
        "started_at",
        "status",
    )

    def __init__(self, scope: Scope, send: Send, started_at: float, traffic: Traffic) -> None:
        """Begin at ``started_at`` (seconds on the runtime's clock), as one more request in flight."""
        self.scope = scope
        self.root_path: str = scope.get("root_path", "")
        self.started_at = started_at
        self.status = 0
        self.ended = False
        self._send = send
        self._trailers = False
        self._traffic = traffic
        self._closers: list[Closer] = []
        traffic.in_flight += 1

    def open(self, hooks: tuple[RequestHook, ...]) -> None:
        """Open every hook; what was opened is closed even if a later hook raises."""
        for hook in hooks:
            self._closers.append(hook(self))

    def end(self) -> None:
        """Leave the traffic and close the hooks in reverse. Only the first call counts."""
        if not self.ended:
            self.ended = True
            self._traffic.in_flight -= 1
            for closer in reversed(self._closers):
                closer(self)

    def client_left(self) -> None:
        """Note that the response will not be completed, unless it was: the rest is nobody's to read."""
        if not self.ended:
            self.status = CLIENT_LEFT
            self.end()

    async def send(self, message: Message) -> None:
        """Forward a message unchanged, noting the status and the end of the response."""
        try:
            await self._send(message)
        except OSError:  # how ASGI servers say that the client left
            self.client_left()
            raise
        kind = message["type"]
        if kind == "http.response.body":
            if not message.get("more_body", False) and not self._trailers:
                self.end()
        elif kind == "http.response.start":
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
        elif kind == "http.response.pathsend" or (
            kind == "http.response.trailers" and not message.get("more_trailers", False)
        ):
            self.end()


Closer = Callable[[Exchange], None]
"""Called once when the exchange ends."""

RequestHook = Callable[[Exchange], Closer]
"""Called when a request begins, on the event loop; returns what to call when it ends.

Both are plain functions: no hook can add an await to a request.
"""


_ANSWERED = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Serving:
    """What the middleware works with while a plugin runs on an event loop."""

    clock: Clock
    traffic: Traffic
    endpoints: Mapping[str, ASGIApp]
    hooks: tuple[RequestHook, ...]

    def endpoint(self, scope: Scope) -> ASGIApp | None:
        """Return the plugin's own answer to a request, if it is for the plugin."""
        path, root_path = scope["path"], scope.get("root_path")
        if root_path:
            path = path.removeprefix(root_path)
        endpoint = self.endpoints.get(path)
        return endpoint if endpoint is None or scope["method"] in _ANSWERED else None
