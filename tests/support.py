"""In-process ASGI calls: no server, every message seen."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel

from asgi_mlperf.hooks import Serving, Traffic


def http_scope(path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        **more,
    }


@dataclass
class Answer:
    """The messages that an app sent."""

    messages: list[Any] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}


async def call(
    app: Any,
    path: str = "/",
    method: str = "GET",
    *,
    on_send: Callable[[Any], None] | None = None,
    **more: Any,
) -> Answer:
    """Call ``app`` once; ``on_send`` sees each message and may raise, as servers do when the client left."""
    answer = Answer()
    unread = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not unread:
            await anyio.sleep_forever()  # as a server does until the client leaves
        return unread.pop()

    async def send(message: Any) -> None:
        if on_send is not None:
            on_send(message)
        answer.messages.append(message)

    await app(http_scope(path, method, **more), receive, send)
    return answer


def nothing_served(**more: Any) -> Serving:
    """What an exchange needs, with nobody to tell."""
    given = {"clock": lambda: 0.0, "traffic": Traffic(), "endpoints": {}, **more}
    return Serving(**given)


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until ``condition`` holds, at most ten seconds."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


@contextmanager
def young_heap() -> Iterator[None]:
    """Collect only when asked to, and only what is made inside: the rest of a process of tests is much."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


async def left_to_collect(
    app: Callable[..., Awaitable[None]], body: bytes, error: type[Exception]
) -> tuple[int, int]:
    """What is in reference cycles after 20 requests that each raise ``error`` unanswered, and after none."""
    scope = {"type": "http", "method": "POST", "path": "/it", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    async def asked(times: int) -> int:
        for _ in range(times):
            with suppress(error):  # pytest.raises() would keep it
                await app(dict(scope), receive, send)
        return gc.collect()

    await asked(3)
    with young_heap():
        gc.collect()
        return await asked(20), await asked(0)
