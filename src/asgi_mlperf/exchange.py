"""One request and its response: what hooks see of it, and how anybody learns that its client left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import ClientDisconnect

from asgi_mlperf.read_ahead import ReadAhead

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger("asgi_mlperf")

ERROR = 500
"""The status of a request whose app failed before it answered."""

CLIENT_LEFT = 499
"""The status, as nginx has it, of a request whose client left before the response was complete."""

BACKGROUND_S = 0.001
"""Seconds from which an app that goes on after the response is told of."""
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
"""The methods that are kept apart; any other token may be one as well."""
_NO_START: Message = {}


class Traffic:
    """How many requests are in flight, kept by the middleware and read by whoever needs it.

    ``wake``, which who rests until there is work may set in any thread, is called by the next request, once.
    """

    __slots__ = ("in_flight", "wake")

    def __init__(self) -> None:
        """Begin with none."""
        self.in_flight = 0
        self.wake: Callable[[], object] | None = None

    def stir(self) -> None:
        """Wake who rests."""
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()


class Notes:
    """What is known of some requests only, telemetry's own."""

    __slots__ = ("account", "request_id")

    def __init__(self) -> None:
        """Begin empty."""
        self.request_id = ""
        self.account: Any = None


Key = tuple[int, int, int, str]
"""Stands for a route and a method."""


class Way(Protocol):
    """How requests of one method and path come to their endpoint past the app's router."""

    @property
    def key(self) -> Key:
        """What all of them have in common with those that the router leads there."""

    @property
    def taken(self) -> object:
        """The route in their scope."""

    @property
    def endpoint(self) -> object:
        """The endpoint there."""


class Exchange:
    """One HTTP request and its response, from the first look until the last message is handed to the server.

    ``status`` is the status sent, or what the client will see when nothing was sent: 500 after an
    exception, 499 after the client left. ``root_path`` is the one the app was called with; mounts on the
    way change the one in the scope. ``started_at``, ``streamed_at`` (the first byte of a streamed response)
    and ``ended_at`` are seconds on the runtime's clock, 0 until they are known; ``received_bytes`` are those
    of the request's body that the app has taken, ``sent_bytes`` those of the response's body. ``encodings``
    are formats and seconds that the response took to encode, set in any thread. ``notes`` is None for a
    request of which there is nothing more to say. ``way`` is how the request came past the app's router, None
    if it did not; if it did, what answers it says in ``is_read`` when all of its body was taken.
    """

    __slots__ = (
        "_reading",
        "_receive",
        "_send",
        "_serving",
        "_start",
        "ahead",
        "encodings",
        "ended",
        "ended_at",
        "is_read",
        "notes",
        "received_bytes",
        "root_path",
        "scope",
        "sent_bytes",
        "started_at",
        "status",
        "streamed_at",
        "way",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, serving: Served, way: Way | None = None
    ) -> None:
        """Begin now, as one more request in flight."""
        self.scope = scope
        self.way = way
        self.root_path: str = scope.get("root_path", "")
        self.status = self.received_bytes = self.sent_bytes = self._reading = 0
        self.streamed_at = self.ended_at = 0.0
        self.ended = self.is_read = False
        self._start: Message = _NO_START
        self._receive = receive
        self._send = send
        self._serving = serving
        self.ahead: ReadAhead | None = None
        self.encodings: tuple[tuple[str, float], ...] = ()
        self.notes: Notes | None = None
        traffic = serving.traffic
        traffic.in_flight += 1
        if traffic.wake is not None:
            traffic.stir()
        self.started_at = serving.clock()

    def end(self) -> None:
        """Leave the traffic and call the closers. Only the first call counts."""
        if not self.ended:
            self.ended = True
            serving = self._serving
            serving.traffic.in_flight -= 1
            self.ended_at = serving.clock()
            for closer in serving.closers:
                try:
                    closer(self)
                except Exception:
                    log.exception("measuring a request failed; its response is as the app sent it")

    def client_left(self) -> None:
        """Note that the response will not be completed, unless it was: the rest is nobody's to read."""
        if not self.ended:
            self.status = CLIENT_LEFT
            self.end()

    def failed(self, error: BaseException) -> None:
        """Note that the app raised ``error``: its own, or the word that the client left."""
        refused = self.status and not self.sent_bytes and isinstance(error, OSError)  # the response's start
        if refused or isinstance(error, (asyncio.CancelledError, ClientDisconnect)):
            self.client_left()
        elif not self.ended:
            self.status = self.status or ERROR
            self.end()

    def left_unfinished(self) -> None:
        """Note that the app returned without an end of the response: its client left, or it sent nothing."""
        if self.status:
            self.client_left()
        else:
            self.status = ERROR  # what servers answer then
            self.end()

    def on_departure(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` once the client has left; return what to call when that is of no more interest.

        The server says so in the stream of request messages. While somebody wants to know, that stream is
        read ahead of the app, at most 1 MiB, and the app gets every message as if nobody had.
        """
        if self.ahead is None:
            self.ahead = ReadAhead(self._receive, app_is_reading=self._reading > 0)
        return self.ahead.listen(callback)

    @property
    def app_hears_of_departures(self) -> bool:
        """Whether the app is sending and listening at once, and will cancel what it does by itself."""
        return self.status != 0 and self.ahead is not None and self.ahead.app_is_waiting

    @property
    def has_started(self) -> bool:
        """Whether the response's start was handed to the server."""
        return self._start is not _NO_START

    def noted(self) -> Notes:
        """Return the notes on this request, begun if there are none."""
        if self.notes is None:
            self.notes = Notes()
        return self.notes

    def close(self) -> None:
        """Let the app have returned: nothing is read any more, and background tasks are told of."""
        if not self.ended:
            self.left_unfinished()
        if self.ahead is not None:
            self.ahead.close()
        serving = self._serving
        seconds = serving.clock() - self.ended_at
        if seconds >= BACKGROUND_S:
            for observer in serving.afterwards:
                observer(self, seconds)

    async def receive(self) -> Message:
        """Forward the server's next message unchanged, noting the body's size."""
        if self.ahead is not None:
            message = await self.ahead.receive()
        else:
            self._reading += 1
            read: Message | None = None
            try:
                message = read = await self._receive()
            finally:
                self._reading -= 1
                if self.ahead is not None:
                    self.ahead.app_has_read(read)
        if "body" in message:
            self.received_bytes += len(message["body"])
        return message

    async def first(self) -> Message:
        """As ``receive``, of the first message, in less time."""
        if self.ahead is not None:
            return await self.receive()
        message = await self._receive()
        self.received_bytes += len(message.get("body", b""))
        return message

    async def answer(self, start: Message, body: bytes) -> None:
        """Send a response that is all there: as ``send`` does, in less time."""
        self._start = start
        self.status = start["status"]
        await self._send(self._changed(start) if self._serving.starters else start)
        self.sent_bytes += len(body)
        self.end()
        await self._send({"type": "http.response.body", "body": body})

    def send(self, message: Message) -> Awaitable[None]:
        """Forward a message, noting the status, the body's size and the end of the response."""
        if message["type"] == "http.response.start":
            self._start = message
            self.status = message["status"]
            if self._serving.starters:
                message = self._changed(message)
            return self._send(message)  # not awaited here: a coroutine less in every request, twice
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            if "body" in message:
                self.sent_bytes += len(message["body"])
            if not self._start.get("trailers", False):
                self.end()
            return self._send(message)
        return self._send_part(message)

    def _changed(self, start: Message) -> Message:
        for starter in self._serving.starters:
            try:
                start = starter(self, start)
            except Exception:
                log.exception("a header could not be added; the response is as the app sent it")
        return start

    async def _send_part(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # how ASGI servers say that the client left
            self.client_left()
            raise
        if message["type"] != "http.response.body":
            self._sent_otherwise(message["type"], message)
            return
        self.sent_bytes += len(message.get("body", b""))
        if not self.streamed_at and self.sent_bytes:
            self.streamed_at = self._serving.clock()

    def _sent_otherwise(self, kind: str, message: Message) -> None:
        if kind == "http.response.zerocopysend":
            self.sent_bytes += message.get("count") or 0
            if not message.get("more_body", False) and not self._start.get("trailers", False):
                self.end()
        elif kind == "http.response.pathsend":
            self.sent_bytes += content_length(self._start.get("headers", ()))
            self.end()
        elif kind == "http.response.trailers" and not message.get("more_trailers", False):
            self.end()


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return what the headers of a message state as its length, 0 where they do not."""
    for name, value in headers:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


class Served(Protocol):
    """What an exchange needs of the runtime: the time, the traffic, and whom to tell of its end."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds from an arbitrary start, never going back."""

    @property
    def traffic(self) -> Traffic:
        """Where the exchange counts while it lasts."""

    @property
    def closers(self) -> tuple[Closer, ...]:
        """What to call at the end."""

    @property
    def starters(self) -> tuple[Callable[[Exchange, Message], Message], ...]:
        """What may change the start of the response."""

    @property
    def afterwards(self) -> tuple[Callable[[Exchange, float], None], ...]:
        """What to tell of the seconds that the app went on after the response, from a millisecond on."""


Opener = Callable[[], object]
"""Called when a request begins, on the event loop.

A plain function, as ``Closer`` is: neither can add an await to a request.
"""

Closer = Callable[[Exchange], None]
"""Called once when an exchange ends, on the event loop."""

current_exchange: ContextVar[Exchange | None] = ContextVar("current_exchange", default=None)
"""The exchange that the running code serves; it may have ended, in background tasks."""
