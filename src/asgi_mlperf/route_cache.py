"""Which endpoint a method and a path lead to, kept so that later requests skip the app's router."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from types import FunctionType
from typing import TYPE_CHECKING, Any

from starlette._exception_handler import wrap_app_handling_exceptions  # as Starlette and FastAPI do
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Host, Match, Router

from asgi_mlperf.exchange import METHODS

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from asgi_mlperf.exchange import Exchange, Key

SCOPE_KEY = "asgi_mlperf"
"""The scope's key for the cache that an endpoint may enter; None where there is none, or nothing to enter."""

Answers = Callable[["Exchange"], "Awaitable[None]"]
Holds = Callable[[Any, "Scope"], bool]
"""Tells whether what answered one request still answers the next, after the app's router took a route."""

_ROUTED_BY = ("type", "path", "root_path", "method")
_SET_BY_ROUTERS = frozenset({"router", "path_params", "fastapi"})
_KEPT = ("router", "route", "endpoint", "starlette.exception_handlers")
_AT_MOST = 1000
_FRAMEWORKS = {"fastapi", "starlette"}
_EXIT_STACK = "fastapi.middleware.asyncexitstack"


class Way:
    """How requests of one method and path come to what answers them, and what their scope holds there."""

    __slots__ = (
        "answer",
        "endpoint",
        "fastapi",
        "holds",
        "kept",
        "key",
        "root_path",
        "route",
        "snapshot",
        "taken",
    )

    def __init__(self, scope: Scope, answer: Answers, holds: Holds, route: Any, snapshot: _Snapshot) -> None:
        """Remember ``scope`` as it is now."""
        self.answer = answer
        self.holds = holds
        self.route = route
        self.snapshot = snapshot
        self.root_path: str = scope.get("root_path", "")
        self.kept = {key: scope[key] for key in _KEPT if key in scope}
        fastapi = scope.get("fastapi")
        self.fastapi: dict[str, Any] | None = None if fastapi is None else dict(fastapi)
        self.taken, self.endpoint = scope.get("route"), scope.get("endpoint")
        self.key = key_of(scope)


def context_of(scope: Scope) -> Any:
    """What FastAPI says of the request's route in the router that includes it, None where none does."""
    included = scope.get("fastapi")
    return None if included is None else included.get("effective_route_context")


def key_of(scope: Scope) -> Key:
    """What is the same for all requests of one method that took one route, as long as that is kept."""
    return id(scope.get("route")), id(scope.get("endpoint")), id(context_of(scope)), scope["method"]


class RouteCache:
    """Endpoints of one app by method and path, for requests that need not be routed again.

    What Starlette and FastAPI find depends on method and path alone, as long as every route and everything
    between the middleware and the routes is their own. So a first request takes the app's way; its
    endpoint enters itself, and the next requests with that method and path are answered by it at once, with
    the same keys in their scope. An outer router, FastAPI's telemetry, routes that were added, replaced or
    removed, and monkeypatched methods of the frameworks mean the app's way; of what is changed inside a
    route only its ``app``, ``methods`` and ``handle`` are noticed. Routes with path parameters, in mounts or
    behind a ``Host`` are not cached.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Cache routes of ``app``, what the middleware calls."""
        self.paths: dict[str, dict[str, Way]] = {}
        self.is_open = type(app) is ExceptionMiddleware
        self._app = app
        self._snapshot: _Snapshot | None = None
        self._refused: set[tuple[str, str]] = set()

    def look_up(self, scope: Scope) -> Way | None:
        """Return the way of a request, whose scope is then as the app's router would have left it."""
        way = self.paths.get(scope["path"], {}).get(scope["method"])
        if (
            way is None
            or not scope.keys().isdisjoint(_SET_BY_ROUTERS)
            or scope.get("root_path", "") != way.root_path
            or scope.get("fastapi.telemetry") is not None
        ):
            return None
        if not way.snapshot.is_current():
            self._clear()
            return None
        if not way.holds(way.route, scope):
            return None
        scope.update(way.kept)
        scope["path_params"] = {}
        if way.fastapi is not None:
            scope["fastapi"] = way.fastapi.copy()
        return way

    def enter(self, scope: Scope, answer: Answers, holds: Holds, *watched: tuple[Any, str]) -> None:
        """Take what answers the request with ``scope``, if the app's router brought it there.

        It answers others as long as ``holds`` says so, and the attributes ``watched`` are what they are now.
        """
        if scope.get("path_params", True) or "app_root_path" in scope or scope["method"] not in METHODS:
            return  # app_root_path: a mount took part
        if self._snapshot is not None and not self._snapshot.is_current():
            self._clear()
        key = path, method = scope["path"], scope["method"]
        if key in self._refused or len(self._refused) >= _AT_MOST:
            return
        snapshot = self._snapshot = self._snapshot or _snapshot(self._app)
        route = None if snapshot is None else snapshot.taken(scope)
        if snapshot is None or route is None or not holds(route, scope) or len(self.paths) >= _AT_MOST:
            self._refused.add(key)
            return
        for owner, name in watched:
            snapshot.note(owner, name)
        self.paths.setdefault(path, {})[method] = Way(scope, answer, holds, route, snapshot)

    def _clear(self) -> None:
        self._snapshot = None
        self.paths = {}
        self._refused = set()


def answer_error(error: Exception, request: Request, send: Send, *, started: bool = False) -> Awaitable[None]:
    """Let the handlers of the app answer to ``error``, or raise it again, as around an app that raised it.

    ``started`` says that the response has. Not a coroutine: its frame would hold the error, whose traceback
    would hold it.
    """

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal error
        if started:
            await send({"type": "http.response.start", "status": 500})
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    around = wrap_app_handling_exceptions(app, request)
    return around(request.scope, request.receive, _discard if started else send)


async def _discard(_message: object) -> None:
    """Send nothing."""


class _Snapshot:
    """The routes of an app, and what else decides how they are found."""

    def __init__(self, router: Any) -> None:
        """Note the routes of ``router``, the app's."""
        self._router = router
        self._routes: list[Any] = list(router.routes)
        self._owners: list[Any] = []
        self._names: list[str] = []
        self._values: list[Any] = []

    def note(self, owner: Any, name: str) -> Any:
        """Note the value of an attribute, and return it."""
        value = getattr(owner, name, None)
        if not any(
            known is owner and name == other for known, other in zip(self._owners, self._names, strict=True)
        ):
            self._owners.append(owner)
            self._names.append(name)
            self._values.append(value)
        return value

    def taken(self, scope: Scope) -> Any:
        """Return the route that the app's own router took for a request; None if it was another's."""
        routers = scope.get("router"), getattr(scope.get("app"), "router", None)
        if any(router is not self._router for router in routers):
            return None
        routed = {key: scope[key] for key in _ROUTED_BY if key in scope}
        return next((route for route in self._router.routes if route.matches(routed)[0] is Match.FULL), None)

    def is_current(self) -> bool:
        """Tell whether all of it is still so."""
        routes, noted = self._router.routes, self._routes
        return (
            len(routes) == len(noted)
            and all(map(is_, routes, noted))  # one that is equal may still answer otherwise
            and all(map(is_, map(getattr, self._owners, self._names), self._values))
        )


def is_frameworks(function: Any) -> bool:
    """Tell whether a function is Starlette's or FastAPI's own, with nothing of others around it."""
    return (
        type(function) is FunctionType  # and no proxy of one
        and function.__module__.partition(".")[0] in _FRAMEWORKS
        and not hasattr(function, "__wrapped__")
    )


def _snapshot(app: Any) -> _Snapshot | None:
    """Note what routes requests between the middleware and the endpoints; None where others take part."""
    inner = app.app
    exit_stack = inner if type(inner).__module__ == _EXIT_STACK else None
    router = inner if exit_stack is None else exit_stack.app
    if not isinstance(router, Router):
        return None
    snapshot = _Snapshot(router)
    snapshot.note(app, "app")
    if exit_stack is not None:
        snapshot.note(exit_stack, "app")
    are_own = all(_is_own(each, "__call__", snapshot) for each in (app, inner, router))
    is_alone = snapshot.note(router, "middleware_stack") == router.app
    are_plain = are_own and is_alone and _is_own(router, "app", snapshot) and _are_plain(router, snapshot)
    return snapshot if are_plain else None


def _are_plain(router: Any, snapshot: _Snapshot) -> bool:
    """Tell whether the routes of a router are found by method and path only, and note how."""
    return all(_is_plain(route, snapshot) for route in router.routes)


def _is_plain(route: Any, snapshot: _Snapshot) -> bool:
    its_handle = snapshot.note(type(route), "handle")
    if (
        isinstance(route, Host)
        or type(its_handle) is not FunctionType
        or not _is_own(route, "matches", snapshot)
    ):
        return False
    included = getattr(route, "original_router", None)  # FastAPI's, where one router is in another
    if included is None:
        return True
    methods = (route, "handle"), (included, "matches"), (included, "handle")
    if not all(_is_own(thing, name, snapshot) for thing, name in methods):
        return False
    # Of the routes of such a router FastAPI notices no more than this.
    return snapshot.note(included, "_routes_version") is not None and _are_plain(included, snapshot)


def _is_own(thing: Any, name: str, snapshot: _Snapshot) -> bool:
    """Tell whether a method of ``thing`` is Starlette's or FastAPI's own, and note it."""
    return is_frameworks(snapshot.note(type(thing), name)) and name not in getattr(thing, "__dict__", ())
