"""What came as the body of a request: its chunks, whole only where a format needs it whole."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request

from asgi_mlperf.exceptions import BodyRefused
from asgi_mlperf.wire.pacing import LIGHT, Pace
from asgi_mlperf.wire.responses import json_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from starlette.types import Message, Receive

    from asgi_mlperf.wire.responses import Lightness

Memory = memoryview | bytearray
PIECE_BYTES = 65_536
_TOO_LARGE = 413
_UNSUPPORTED = 415
_LENGTH_DIGITS = 18


class Received:
    """The bytes of a body. They can be taken once; bytes are let go of as they are taken."""

    __slots__ = ("_chunks", "is_heavy", "pace")

    def __init__(self, chunks: Iterable[bytes | memoryview], *, is_heavy: bool = False) -> None:
        """Hold ``chunks``, bytes or all of it in writable memory; a heavy body is taken in a thread."""
        self._chunks = list(chunks)
        self.is_heavy = is_heavy
        self.pace = Pace() if is_heavy else LIGHT

    def text(self) -> bytes:
        """All of it, as it came if it came in one piece."""
        return bytes(self._chunks[0]) if len(self._chunks) == 1 else b"".join(self._chunks)

    def memory(self) -> Memory:
        """All of it, in writable memory that is aligned for any number."""
        if not self.is_heavy:
            return bytearray().join(self._chunks)
        if len(self._chunks) == 1 and isinstance(self._chunks[0], memoryview):
            return self._chunks[0]
        memory, at = _memory(sum(map(len, self._chunks))), 0
        for piece in self.pieces():
            memory[at : at + len(piece)] = piece
            at += len(piece)
        return memory

    def pieces(self) -> Iterator[bytes]:
        """It in order, in pieces of at most :data:`PIECE_BYTES`, with pauses."""
        self._chunks.reverse()
        while self._chunks:
            chunk = self._chunks.pop()
            for at in range(0, len(chunk), PIECE_BYTES):
                yield bytes(chunk[at : at + PIECE_BYTES])
                self.pace.breathe()


def may_be_light(headers: Mapping[bytes, bytes], limits: Lightness) -> bool:
    """Whether what the client says of a body leaves nothing to refuse and nothing to prepare for."""
    return len(headers.get(b"content-length", b"")) <= limits.digits and b"content-encoding" not in headers


def light(message: Message, limits: Lightness) -> bytes | None:
    """The body, if ``message`` is all of it and it is light."""
    if message["type"] != "http.request" or message.get("more_body"):
        return None
    body = message.get("body") or b""
    return bytes(body) if len(body) < limits.below_bytes else None


def is_untouched(request: Request) -> bool:
    """Whether the messages of ``request`` are its body, of which nobody has read anything."""
    if type(request) is not Request:
        return False
    state = request.__dict__
    return state.get("_stream_consumed") is False and "_body" not in state and "stream" not in state


def with_first(message: Message, receive: Receive) -> Receive:
    """What gives ``message``, taken from ``receive`` already, and then what comes after it."""
    waiting: list[Message] = [message]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def received(request: Request, headers: Mapping[bytes, bytes]) -> Received:
    """The body of ``request``, which has these ``headers``.

    Raises:
        BodyRefused: 413 above the limit in the settings, before it is read if the client says its length;
            415 when it is compressed.
    """
    settings = json_settings.get()
    limit = settings.body_limit_bytes
    if b"content-encoding" in headers and headers[b"content-encoding"].strip().lower() != b"identity":
        raise BodyRefused(_UNSUPPORTED, "content_encoding", "Input should not be compressed")
    told = headers.get(b"content-length", b"0")
    if len(told) > _LENGTH_DIGITS or (length := int(told) if told.isdigit() else 0) > limit:
        raise _too_large(limit)
    if length and length >= settings.offload_bytes:
        return Received(await _in_memory(request, length, limit), is_heavy=True)
    chunks: list[bytes] = []
    size = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            if chunk:
                chunks.append(chunk)
    return Received(chunks, is_heavy=size >= settings.offload_bytes)


async def _in_memory(request: Request, length: int, limit: int) -> list[bytes | memoryview]:
    """A heavy body, put together as it comes: 100 MB of chunks would take 5 ms to give back.

    Middleware may have made it longer than the client said.
    """
    memory, at, size = _memory(length), 0, 0
    more: list[bytes | memoryview] = []
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            if more or size > length:
                more.append(chunk)
            else:
                memory[at:size] = chunk
                at = size
    return [memory[:at], *more]


def _memory(size: int) -> memoryview:
    """Memory that is taken only when it is written to.

    NumPy asks the kernel for huge pages, which are given back in a tenth of the time.
    """
    array: Any = np.empty(size, "u1")
    return memoryview(array)


def _too_large(limit: int) -> BodyRefused:
    return BodyRefused(_TOO_LARGE, "too_large", f"Input should have at most {limit} bytes")
