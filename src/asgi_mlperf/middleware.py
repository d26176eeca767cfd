"""The only code that runs for every request."""

from __future__ import annotations

from asyncio import _get_running_loop  # a running loop or None; the public one raises, under trio
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import Request

from asgi_mlperf.exchange import Exchange, current_exchange
from asgi_mlperf.route_cache import SCOPE_KEY, RouteCache, answer_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from asgi_mlperf.hooks import Serving


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
        self._cache = RouteCache(app)
        self._servings = plugin.servings
        plugin.has_middleware = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a websocket or the lifespan on."""
        if scope["type"] != "http" or SCOPE_KEY in scope:
            await self._pass_on(scope, receive, send)
            return
        serving = self._servings.get(_get_running_loop()) or self.plugin.serving()
        if serving is None:
            await self.app(scope, receive, send)
            return
        path, cache = scope["path"], self._cache
        if path in serving.endpoints or scope.get("root_path"):
            endpoint = serving.endpoint(scope)
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        way = cache.look_up(scope) if path in cache.paths else None
        # Not the exchange itself: a reference back would make every request a cycle.
        scope[SCOPE_KEY] = cache if way is None and cache.is_open else None
        exchange = Exchange(scope, receive, send, serving, way)
        token = current_exchange.set(exchange)
        try:
            for opener in serving.openers:
                opener()
            if way is None:
                await self.app(scope, exchange.receive, exchange.send)
            else:
                try:
                    await way.answer(exchange)
                except Exception as error:  # noqa: BLE001 - raised again where the app's handlers take it
                    request = Request(scope, exchange.receive, exchange.send)
                    await answer_error(error, request, exchange.send, started=exchange.has_started)
        except BaseException as error:
            exchange.failed(error)
            raise
        finally:
            current_exchange.reset(token)
            exchange.close()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what is no request, or one that is measured already; only time what websockets take."""
        serving = None
        if scope["type"] == "websocket" and SCOPE_KEY not in scope:
            serving = self._servings.get(_get_running_loop())
        if serving is None or serving.websocket is None:
            await self.app(scope, receive, send)
            return
        scope[SCOPE_KEY] = None
        with serving.websocket(scope):
            await self.app(scope, receive, send)
