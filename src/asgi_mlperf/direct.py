"""Straight to an endpoint that needs nothing of the app's router, with what routing found the first time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from operator import attrgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Host, Match

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OFFERS = "asgi_mlperf"
"""The scope's key for the ``DirectWays`` to which an endpoint may offer itself; None where nobody asks."""

End = Callable[["Scope"], "ASGIApp | None"]
"""Gives what answers a request, if that still needs no router."""

Find = Callable[[Any], End | None]
"""Gives the end of the way that begins with the route that the app's router takes, if it leads there."""

_ROUTED_BY = ("type", "path", "root_path", "method")
_FOUND = ("router", "route", "endpoint", "starlette.exception_handlers")
_AT_MOST = 1000
_FRAMEWORKS = {"fastapi", "starlette"}
_EXIT_STACK = "fastapi.middleware.asyncexitstack"
_routes_of = attrgetter("routes")


class _Way(NamedTuple):
    """What was in the scope when a request came to its endpoint, and that endpoint."""

    root_path: str
    plan: _Plan
    place: int
    route: Any
    found: dict[str, Any]
    included: dict[str, Any] | None
    end: End


class _Plan:
    """An app's routers with their routes, and the methods by which these find an endpoint."""

    def __init__(self) -> None:
        self.routers: list[Any] = []
        self._stack: Any = None
        self._routes: list[list[Any]] = []
        self._owners: list[type] = []
        self._names: list[str] = []
        self._methods: list[Any] = []

    def note(self, router: Any) -> None:
        """Add a router and its routes; the first is the app's."""
        if not self.routers:
            self._stack = router.middleware_stack
        self.routers.append(router)
        self._routes.append(list(router.routes))

    def note_method(self, owner: type, name: str) -> Any:
        """Add a method, and return it."""
        method = getattr(owner, name, None)
        if (owner, name) not in zip(self._owners, self._names, strict=True):
            self._owners.append(owner)
            self._names.append(name)
            self._methods.append(method)
        return method

    def holds(self) -> bool:
        """Whether all is as it was; what replaces a route may be equal to it."""
        return (
            list(map(_routes_of, self.routers)) == self._routes  # by identity first, as lists do
            and self.routers[0].middleware_stack is self._stack
            and list(map(getattr, self._owners, self._names)) == self._methods
        )


class DirectWays:
    """Endpoints of one app that are called by method and path, without the app's own way to them.

    What Starlette and FastAPI find depends on method and path alone, as long as all routes and everything
    between the middleware and them is theirs. So the first request takes the app's way; the endpoint then
    offers itself, and the next ones of that method and path come to it with the same scope at once. An outer
    router, FastAPI's telemetry, changed routes, and methods that others put in the place of the frameworks'
    mean the app's way. Only constant paths are learned.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Stand before ``app``."""
        self.paths: dict[str, dict[str, _Way]] = {}
        self._app = app
        self._plan: _Plan | None = None
        self._refused: set[tuple[str, str]] = set()

    def find(self, scope: Scope) -> ASGIApp | None:
        """Return what answers a request, whose scope is then as the app's router would have left it."""
        way = self.paths.get(scope["path"], {}).get(scope["method"])
        if (
            way is None
            or "router" in scope
            or "path_params" in scope
            or "fastapi" in scope
            or scope.get("root_path", "") != way.root_path
            or scope.get("fastapi.telemetry") is not None
        ):
            return None
        plan = way.plan
        if not plan.holds() or plan.routers[0].routes[way.place] is not way.route:
            self._forget()
            return None
        app = way.end(scope)
        if app is not None:
            scope.update(way.found)
            scope["path_params"] = {}
            if way.included is not None:
                scope["fastapi"] = way.included.copy()
        return app

    def offer(self, scope: Scope, find: Find) -> None:
        """Learn the way to an endpoint that ``scope`` came to; ``find`` says whether a route leads there."""
        if scope["path_params"] or "app_root_path" in scope or len(self._refused) >= _AT_MOST:
            return  # the latter says that a mount took part
        key = path, method = scope["path"], scope["method"]
        if self._plan is not None and not self._plan.holds():
            self._forget()
        if key not in self._refused:
            way = self._way(scope, find)
            if way is None or len(self.paths) >= _AT_MOST:
                self._refused.add(key)
            else:
                self.paths.setdefault(path, {})[method] = way

    def answer(
        self, error: Exception, scope: Scope, receive: Receive, send: Send, *, started: bool
    ) -> Awaitable[None]:
        """Let the app's exception handlers answer to what an endpoint raised, or raise it again."""
        handlers = copy.copy(self._app)
        handlers.app = raising(error, started=started)  # type: ignore[attr-defined]
        return handlers(scope, receive, _nowhere if started else send)

    def _forget(self) -> None:
        self._plan = None
        self.paths = {}
        self._refused = set()

    def _way(self, scope: Scope, find: Find) -> _Way | None:
        if self._plan is None:
            self._plan = _plan(self._app)
        plan, app_router = self._plan, getattr(scope.get("app"), "router", None)
        if plan is None or plan.routers[0] is not app_router or scope["router"] is not app_router:
            return None
        routed = {key: scope[key] for key in _ROUTED_BY if key in scope}
        matches = (route.matches(routed)[0] is Match.FULL for route in app_router.routes)
        place = next((place for place, is_match in enumerate(matches) if is_match), None)
        end = None if place is None else find(app_router.routes[place])
        if place is None or end is None:
            return None
        found = {key: scope[key] for key in _FOUND if key in scope}
        included = scope.get("fastapi")
        route = app_router.routes[place]
        return _Way(scope.get("root_path", ""), plan, place, route, found, included and dict(included), end)


def raising(error: Exception, *, started: bool = False) -> ASGIApp:
    """Return an app that raises ``error``, once, after a start of a response if it has ``started``."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal error
        if started:
            await send({"type": "http.response.start", "status": 500})
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    return app


async def _nowhere(_message: Message) -> None:
    """Drop a message."""


def is_theirs(function: Any) -> bool:
    """Tell whether a function is Starlette's or FastAPI's own, with nothing of others around it."""
    return (
        isinstance(function, FunctionType)
        and function.__module__.partition(".")[0] in _FRAMEWORKS
        and not hasattr(function, "__wrapped__")
    )


def _plan(app: ASGIApp) -> _Plan | None:
    """Note how ``app`` finds its endpoints; None where others take part in that."""
    plan = _Plan()
    if type(app) is not ExceptionMiddleware or not _theirs(app, "__call__", plan):
        return None
    inner: Any = app.app
    if type(inner).__module__ == _EXIT_STACK and _theirs(inner, "__call__", plan):
        inner = inner.app
    if not _theirs(inner, "__call__", plan) or not _theirs(inner, "app", plan):
        return None
    is_alone = getattr(inner, "middleware_stack", None) == inner.app
    return plan if is_alone and _is_plain(inner, plan) else None


def _is_plain(router: Any, plan: _Plan) -> bool:
    """Tell whether a router's routes are the frameworks' own and heed nothing but method and path."""
    if any(router is known for known in plan.routers):
        return True
    plan.note(router)
    return all(_route_is_plain(route, plan) for route in router.routes)


def _route_is_plain(route: Any, plan: _Plan) -> bool:
    if isinstance(route, Host):
        return False
    handles = _theirs(route, "handle", plan)  # if not, what is at its end may know why
    if not _theirs(route, "matches", plan):
        return False
    included = getattr(route, "original_router", None)  # of a router in a router, in newer FastAPIs
    return included is None or (
        handles
        and _theirs(included, "matches", plan)
        and _theirs(included, "handle", plan)
        and _is_plain(included, plan)
    )


def _theirs(thing: Any, name: str, plan: _Plan) -> bool:
    """Tell whether a method is Starlette's or FastAPI's own, and note it."""
    method = getattr(getattr(thing, name, None), "__func__", None)
    return method is plan.note_method(type(thing), name) and is_theirs(method)
