"""One request and its response: what hooks see of it, and how anybody learns that its client left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from asgi_mlperf.read_ahead import ReadAhead

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger("asgi_mlperf")

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
        "_ahead",
        "_closers",
        "_reading",
        "_receive",
        "_send",
        "_traffic",
        "_trailers",
        "ended",
        "root_path",
        "scope",
        "started_at",
        "status",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, started_at: float, traffic: Traffic
    ) -> None:
        """Begin at ``started_at`` (seconds on the runtime's clock), as one more request in flight."""
        self.scope = scope
        self.root_path: str = scope.get("root_path", "")
        self.started_at = started_at
        self.status = 0
        self.ended = False
        self._receive = receive
        self._send = send
        self._trailers = False
        self._traffic = traffic
        self._closers: list[Closer] = []
        self._reading = 0
        self._ahead: ReadAhead | None = None
        traffic.in_flight += 1

    def open(self, hooks: tuple[RequestHook, ...]) -> None:
        """Open every hook; what was opened is closed even if a later hook raises."""
        for hook in hooks:
            closer = hook(self)
            if closer is not None:
                self._closers.append(closer)

    def end(self) -> None:
        """Leave the traffic and close the hooks in reverse. Only the first call counts."""
        if not self.ended:
            self.ended = True
            self._traffic.in_flight -= 1
            for closer in reversed(self._closers):
                try:
                    closer(self)
                except Exception:
                    log.exception("measuring a request failed; its response is as the app sent it")

    def client_left(self) -> None:
        """Note that the response will not be completed, unless it was: the rest is nobody's to read."""
        if not self.ended:
            self.status = CLIENT_LEFT
            self.end()

    def on_departure(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` once the client has left; return what to call when that is of no more interest.

        The server says so in the stream of request messages. While somebody wants to know, that stream is
        read ahead of the app, at most 1 MiB, and the app gets every message as if nobody had.
        """
        if self._ahead is None:
            self._ahead = ReadAhead(self._receive, app_is_reading=self._reading > 0)
        return self._ahead.listen(callback)

    @property
    def app_hears_of_departures(self) -> bool:
        """Whether the app is sending and listening at once, and will cancel what it does by itself."""
        return self.status != 0 and self._ahead is not None and self._ahead.app_is_waiting

    def close(self) -> None:
        """Let go of the server's side: nothing is read for this request any more."""
        if self._ahead is not None:
            self._ahead.close()

    async def receive(self) -> Message:
        """Forward the server's next message unchanged."""
        if self._ahead is not None:
            return await self._ahead.receive()
        self._reading += 1
        message: Message | None = None
        try:
            message = await self._receive()
        finally:
            self._reading -= 1
            if self._ahead is not None:
                self._ahead.app_has_read(message)
        return message

    async def send(self, message: Message) -> None:
        """Forward a message unchanged, noting the status and the end of the response."""
        try:
            await self._send(message)
        except OSError:  # how ASGI servers say that the client left
            self.client_left()
            raise
        kind = message["type"]
        if kind in ("http.response.body", "http.response.zerocopysend"):
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

RequestHook = Callable[[Exchange], Closer | None]
"""Called when a request begins, on the event loop; returns what to call when it ends, if anything.

Both are plain functions: no hook can add an await to a request.
"""

current_exchange: ContextVar[Exchange | None] = ContextVar("current_exchange", default=None)
"""The exchange that the running code serves; it may have ended, in background tasks."""
