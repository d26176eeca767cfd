"""One request as a server sends it: after the body, ``receive`` waits for a departure that never comes."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support import http_scope


async def ask(app: Any, path: str = "/") -> str:
    messages: list[Any] = []
    request = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        for message in request:
            return message
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        messages.append(message)

    await app(http_scope(path), receive, send)
    assert messages[0]["status"] == 200
    return b"".join(message.get("body", b"") for message in messages[1:]).decode()
