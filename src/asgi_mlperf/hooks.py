"""What the middleware and the wings agree on, so that neither imports the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from starlette.types import Message, Scope, Send

Clock = Callable[[], float]
"""Seconds from an arbitrary start, never going back."""


class Observer(Protocol):
    """Takes measurements one by one; what becomes of them is the owner's business."""

    def observe(self, amount: float, /) -> None:
        """Take one measurement, in the unit that the owner's name says."""


class Exchange:
    """One HTTP request and its response, from the first look to the final body message.

    ``status`` is the status sent, or what the client will see when nothing was sent: 500 after an
    exception, 499 after the client left.
    """

    __slots__ = ("_closers", "_send", "_trailers", "ended", "scope", "started_at", "status")

    def __init__(self, scope: Scope, send: Send, started_at: float) -> None:
        """Begin at ``started_at`` (seconds on the runtime's clock)."""
        self.scope = scope
        self.started_at = started_at
        self.status = 0
        self.ended = False
        self._send = send
        self._trailers = False
        self._closers: list[Closer] = []

    def open(self, hooks: tuple[RequestHook, ...]) -> None:
        """Open every hook; what was opened is closed even if a later hook raises."""
        for hook in hooks:
            self._closers.append(hook(self))

    def end(self) -> None:
        """Close the hooks in reverse. Only the first call counts."""
        if not self.ended:
            self.ended = True
            for closer in reversed(self._closers):
                closer(self)

    async def send(self, message: Message) -> None:
        """Forward a message unchanged, noting the status and the end of the response."""
        await self._send(message)
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
