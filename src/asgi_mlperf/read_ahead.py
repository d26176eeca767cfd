"""Reads a request's messages before its app asks, which is how a server says that the client left."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive

log = logging.getLogger("asgi_mlperf")

_READ_AHEAD_BYTES = 1 << 20
_MESSAGE_BYTES = 256


class ReadAhead:
    """Reads a request's messages before the app asks, to see the client leave; keeps them for the app.

    At any time at most one party awaits the server's ``receive``: servers differ in whom they would tell.
    """

    def __init__(self, receive: Receive, *, app_is_reading: bool) -> None:
        """Begin while the app may already await a message of the server's."""
        self._receive = receive
        self._app_is_reading = app_is_reading
        self._waiting = 0
        self._kept: deque[Message] = deque()
        self._kept_bytes = 0
        self._body_over = False
        self._senseless = False
        self._gone: Message | None = None
        self._listeners: dict[object, Callable[[], None]] = {}
        self._arrived = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` at the departure; return what to call when that is of no more interest."""
        key = object()
        self._listeners[key] = callback
        if self._gone is not None:
            callback()
        self._continue()
        return lambda: self._forget(key)

    @property
    def app_is_waiting(self) -> bool:
        """Whether the app itself awaits a message now."""
        return self._app_is_reading or self._waiting > 0

    def close(self) -> None:
        """Read no more, and tell nobody."""
        self._listeners.clear()
        if self._reader is not None:
            self._reader.cancel()

    def app_has_read(self, message: Message | None) -> None:
        """Take what the app's own call gave it, None when it was cancelled."""
        if message is not None:
            self._note(message)
        self._app_is_reading = False
        self._arrived.set()
        self._continue()

    async def receive(self) -> Message:
        """Give the app its next message: one that is kept, or the server's."""
        while not self._kept:
            if self._gone is not None:
                return self._gone
            if self._reader is None and not self._app_is_reading:
                return await self._read_for_app()
            self._arrived.clear()
            self._waiting += 1
            try:
                await self._arrived.wait()
            finally:
                self._waiting -= 1
        message = self._kept.popleft()
        self._kept_bytes -= len(message.get("body", b"")) + _MESSAGE_BYTES
        return message

    async def _read_for_app(self) -> Message:
        self._app_is_reading = True
        message: Message | None = None
        try:
            message = await self._receive()
        finally:
            self.app_has_read(message)
        return message

    def _continue(self) -> None:
        over = self._gone is not None or self._senseless or self._kept_bytes >= _READ_AHEAD_BYTES
        if self._listeners and not over and self._reader is None and not self._app_is_reading:
            self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            while self._gone is None and self._kept_bytes < _READ_AHEAD_BYTES and not self._senseless:
                message = await self._receive()
                self._note(message)
                if self._gone is None:
                    self._keep(message)
                self._arrived.set()
        except Exception as error:  # noqa: BLE001 - the app's own next call meets it
            log.debug("the server's receive failed while reading ahead: %r", error)
        finally:
            self._reader = None
            self._arrived.set()

    def _note(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._gone = message
            for callback in list(self._listeners.values()):
                callback()

    def _keep(self, message: Message) -> None:
        # After the last part of the body only a departure makes sense; stubs repeat themselves for ever.
        self._senseless = self._body_over
        self._body_over = not message.get("more_body", False)
        self._kept.append(message)
        self._kept_bytes += len(message.get("body", b"")) + _MESSAGE_BYTES

    def _forget(self, key: object) -> None:
        self._listeners.pop(key, None)
