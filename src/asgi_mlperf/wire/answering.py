"""What Starlette does around an endpoint, for endpoints that are called without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from starlette._exception_handler import wrap_app_handling_exceptions  # as Starlette and FastAPI do
from starlette.requests import ClientDisconnect, Request

from asgi_mlperf.wire.responses import ORJSONResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send


class Asked(Protocol):
    """A request that is to be answered: an ``Exchange``, or one that came through the app's router."""

    is_read: bool
    """Whether all of its body was taken."""

    @property
    def scope(self) -> Scope:
        """The request's."""

    @property
    def first(self) -> Receive:
        """Takes the first message of the body."""

    @property
    def receive(self) -> Receive:
        """Takes a message."""

    @property
    def send(self) -> Callable[[Message], Awaitable[None]]:
        """Sends a message."""

    async def answer(self, start: Message, body: bytes) -> None:
        """Send a response that is all there."""


class Routed:
    """A request that came through the app's router."""

    __slots__ = ("first", "is_read", "receive", "scope", "send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take what an ASGI app is called with."""
        self.scope = scope
        self.first = self.receive = receive
        self.send = send
        self.is_read = False

    async def answer(self, start: Message, body: bytes) -> None:
        """Send a response that is all there."""
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def request_of(asked: Asked, error: Exception | None = None) -> Request:
    """Return the request as Starlette has it, for who wants to know more of it, also after an ``error``."""
    request = Request(asked.scope, asked.receive, asked.send)
    request._stream_consumed = asked.is_read  # noqa: SLF001 - as if it had been read through this one
    request._is_disconnected = isinstance(error, ClientDisconnect)  # noqa: SLF001 - the same
    return request


def send_answer(answer: bytes | Response, asked: Asked, request: Request | None) -> Awaitable[None]:
    """Send a response, or what an ``ORJSONResponse`` with this body would.

    What a response raises goes to the handlers of the app, with ``request`` if there is one already.
    """
    if isinstance(answer, bytes):
        headers = [(b"content-length", b"%d" % len(answer)), (b"content-type", b"application/json")]
        return asked.answer({"type": "http.response.start", "status": 200, "headers": headers}, answer)
    only_sends = type(answer) is ORJSONResponse and hasattr(answer, "body") and not answer.background
    app = answer if only_sends else wrap_app_handling_exceptions(answer, request or request_of(asked))
    return app(asked.scope, asked.receive, asked.send)
