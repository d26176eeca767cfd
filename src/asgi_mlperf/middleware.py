"""The only code that runs for every request."""

from __future__ import annotations

from asyncio import _get_running_loop  # a running loop or None; the public one raises, under trio
from typing import TYPE_CHECKING, Any, Protocol

from asgi_mlperf.exchange import BACKGROUND_S, Exchange, current_exchange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from asgi_mlperf.hooks import Serving

_SCOPE_KEY = "asgi_mlperf"


class Installed(Protocol):
    """What the middleware needs of a plugin, and tells it."""

    has_middleware: bool
    servings: Mapping[Any, Serving]
    """What serves, by event loop."""

    def serving(self) -> Serving | None:
        """Return what serves on the running event loop; None while the plugin does not run there."""


class PerfMiddleware:
    """Measures requests, tells the garbage collector when they end, and answers health and metrics paths.

    Changes no request and no response. While the plugin's lifespan does not run, everything passes
    through untouched, with one warning per plugin.
    """

    def __init__(self, app: ASGIApp, plugin: Installed) -> None:
        """Wrap ``app``; all state is in ``plugin`` and in each request's own ``Exchange``."""
        self.app = app
        self.plugin = plugin
        self._servings = plugin.servings
        plugin.has_middleware = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a websocket or the lifespan on."""
        if scope["type"] != "http" or _SCOPE_KEY in scope:
            await self._pass_on(scope, receive, send)
            return
        serving = self._servings.get(_get_running_loop()) or self.plugin.serving()
        if serving is None:
            await self.app(scope, receive, send)
            return
        if scope["path"] in serving.endpoints or scope.get("root_path"):
            endpoint = serving.endpoint(scope)
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        scope[_SCOPE_KEY] = True  # not the exchange itself: a reference back would make every request a cycle
        exchange = Exchange(scope, receive, send, serving)
        token = current_exchange.set(exchange)
        try:
            for opener in serving.openers:
                opener()
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.failed(error)
            raise
        finally:
            current_exchange.reset(token)
            if not exchange.ended or exchange.ahead is not None:
                exchange.close()
            if serving.clock() - exchange.ended_at >= BACKGROUND_S:
                exchange.went_on()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what is no request, or one that is measured already; only time what websockets take."""
        serving = None
        if scope["type"] == "websocket" and _SCOPE_KEY not in scope:
            serving = self._servings.get(_get_running_loop())
        if serving is None or serving.websocket is None:
            await self.app(scope, receive, send)
            return
        scope[_SCOPE_KEY] = True
        with serving.websocket(scope):
            await self.app(scope, receive, send)
