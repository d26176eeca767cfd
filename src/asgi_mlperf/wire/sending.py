"""Heavy bodies on their way out: made in a thread that lets the event loop breathe, sent in pieces."""

from __future__ import annotations

import mmap
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.responses import Response
    from starlette.types import Scope, Send

    from asgi_mlperf.wire.pacing import Pace

Body = deque[memoryview]
_BLOCK_BYTES = 8_388_608
_PIECE_BYTES = 65_536
_PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}


def collect(pieces: Iterable[bytes], pace: Pace) -> Body:
    """All ``pieces``, made one by one, in blocks of memory of their own.

    As they were made, the allocator would give them back to the system all at once, after the last: 5 ms.
    """
    body: Body = deque()
    block, used = _block(), 0
    for piece in pieces:
        pace.breathe()
        rest = memoryview(piece)
        while len(rest) > _BLOCK_BYTES - used:
            block[used:] = rest[: _BLOCK_BYTES - used]
            body.append(block)
            block, rest, used = _block(), rest[_BLOCK_BYTES - used :], 0
        block[used : used + len(rest)] = rest
        used += len(rest)
    body.append(block[:used])
    return body


async def send_pieces(response: Response, body: Body, scope: Scope, send: Send) -> None:
    """Send ``response`` with ``body`` instead of its own, forgetting each block once it is sent."""
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send(
        {"type": f"{prefix}.response.start", "status": response.status_code, "headers": response.raw_headers}
    )
    while body:
        block = body.popleft()
        for at in range(0, len(block) or 1, _PIECE_BYTES):
            more = bool(body) or at + _PIECE_BYTES < len(block)
            piece = bytes(block[at : at + _PIECE_BYTES])
            await send({"type": f"{prefix}.response.body", "body": piece, "more_body": more})
    if response.background is not None:
        await response.background()


def _block() -> memoryview:
    block = mmap.mmap(-1, _BLOCK_BYTES, **_PRIVATE)
    with suppress(AttributeError, OSError):  # only Linux has huge pages, and not every Linux
        block.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(block)
