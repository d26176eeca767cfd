"""The metrics endpoint: rendered off the event loop, with a thread that inference cannot take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response

from asgi_mlperf.telemetry.access import may_read
from asgi_mlperf.telemetry.rendering import Wanted
from asgi_mlperf.telemetry.turns import short_turns

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.telemetry.rendering import Page, Renderer


class Exposition:
    """An ASGI app that answers a scrape in the format that the scraper asks for.

    Scrapers that come while a page is rendered wait for the next one and share it.
    """

    def __init__(self, renderer: Renderer, *, token: str | None) -> None:
        """Serve what ``renderer`` renders, to those who know the ``token`` if there is one."""
        self._renderer = renderer
        self._token = token
        self._turn = asyncio.Lock()
        self._limiter = anyio.CapacityLimiter(1)
        self._next: dict[Wanted, asyncio.Task[Page]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scrape."""
        headers = Headers(scope=scope)
        response: Response
        if may_read(headers.get("authorization"), self._token):
            wanted = Wanted.of(headers.get("accept", ""), headers.get("accept-encoding", ""))
            page = await self._page(wanted)
            response = Response(page.body, headers=page.headers)
        else:
            response = PlainTextResponse("the metrics need a token", 401, {"www-authenticate": "Bearer"})
        await response(scope, receive, send)

    async def _page(self, wanted: Wanted) -> Page:
        task = self._next.get(wanted)
        if task is None:
            task = self._next[wanted] = asyncio.create_task(self._render(wanted))
        # A scraper that leaves must not take the page from the others.
        return await asyncio.shield(task)

    async def _render(self, wanted: Wanted) -> Page:
        try:
            async with self._turn:
                del self._next[wanted]  # who comes from now on wants what happens from now on
                with short_turns():  # from here on: who waits for a turn already waits out the old one
                    return await anyio.to_thread.run_sync(self._renderer.page, wanted, limiter=self._limiter)
        except BaseException:
            self._next.pop(wanted, None)
            raise
