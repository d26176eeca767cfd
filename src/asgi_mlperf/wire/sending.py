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

Body = deque[bytes | memoryview]
_LEAST_BLOCK_BYTES = 1_048_576
_MOST_BLOCK_BYTES = 8_388_608
_PIECE_BYTES = 131_072
_PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}


def collect(pieces: Iterable[bytes], pace: Pace) -> Body:
    """All ``pieces``, made one by one."""
    body: Body = deque()
    for piece in pieces:
        pace.breathe()
        body.append(piece)
    return body


def pack(pieces: Iterable[bytes], pace: Pace) -> Body:
    """All ``pieces``, made one by one, in blocks of memory of their own.

    As many small ones, the allocator would give them back to the system all at once, after the last: 5 ms.
    """
    body: Body = deque()
    block, used = _block(_LEAST_BLOCK_BYTES), 0
    for piece in pieces:
        pace.breathe()
        rest = memoryview(piece)
        while len(rest) > len(block) - used:
            room = len(block) - used
            block[used:] = rest[:room]
            body.append(block)
            block, rest, used = _block(min(2 * len(block), _MOST_BLOCK_BYTES)), rest[room:], 0
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
    await _send_body(body or deque([b""]), f"{prefix}.response.body", send)
    if response.background is not None:
        await response.background()


async def _send_body(body: Body, kind: str, send: Send) -> None:
    while body:
        block = body.popleft()
        step = _PIECE_BYTES if isinstance(block, memoryview) else len(block)
        for at in range(0, len(block) or 1, step or 1):
            more = bool(body) or at + step < len(block)
            await send({"type": kind, "body": bytes(block[at : at + step]), "more_body": more})


def _block(size: int) -> memoryview:
    block = mmap.mmap(-1, size, **_PRIVATE)
    with suppress(AttributeError, OSError):  # only Linux has huge pages, and not every Linux
        block.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(block)
