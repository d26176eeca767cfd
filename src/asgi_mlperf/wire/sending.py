"""Heavy bodies on their way out: made in a thread that lets the event loop breathe, sent in pieces."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.responses import Response
    from starlette.types import Scope, Send

    from asgi_mlperf.wire.pacing import Pace


def collect(pieces: Iterator[bytes], pace: Pace) -> deque[bytes]:
    """All ``pieces``, made one by one, at least one."""
    made = deque([next(pieces, b"")])
    for piece in pieces:
        pace.breathe()
        made.append(piece)
    return made


async def send_pieces(response: Response, body: deque[bytes], scope: Scope, send: Send) -> None:
    """Send ``response`` with ``body`` instead of its own, forgetting each piece once it is sent."""
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send(
        {"type": f"{prefix}.response.start", "status": response.status_code, "headers": response.raw_headers}
    )
    while body:
        piece = body.popleft()
        await send({"type": f"{prefix}.response.body", "body": piece, "more_body": bool(body)})
    if response.background is not None:
        await response.background()
