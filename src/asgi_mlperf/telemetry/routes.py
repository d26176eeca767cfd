"""The route template of a request, for labels: never the path, and without matching routes again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from asgi_mlperf.route_cache import context_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import Scope

    from asgi_mlperf.hooks import Exchange

UNMATCHED = ""
"""The label of what matched no route, 404s and redirects: OpenTelemetry leaves ``http.route`` out."""

_REST = "/{path}"
_REST_PATTERN = "/(?P<path>.*)$"
_ANYTHING = re.compile("")


class RouteTemplates:
    """Gives the full template of the route taken, prefixes of mounts and included routers in it.

    Routers leave the matched leaf in the scope; what they leave out, the templates of the mounts that led
    there, is read from the app's routes once. A constant mount prefix is one dictionary look-up; only
    mounts with parameters are matched against their patterns.
    """

    def __init__(self, app: Any) -> None:
        """Read the routes of ``app`` when a request first needs them."""
        self._app = app
        self._routes_read = -1
        self._constant_mounts: dict[str, str] = {}
        self._parameter_mounts: list[tuple[re.Pattern[str], str]] = []
        self._endpoints: dict[int, list[tuple[re.Pattern[str], str]]] = {}

    def route_of(self, exchange: Exchange) -> str:
        """Return the template of the route that an exchange took, or ``UNMATCHED``."""
        return self.route_in(exchange.scope, exchange.root_path)

    def route_in(self, scope: Scope, outer: str) -> str:
        """Return the same for a scope that has been routed, of an app that was called under ``outer``."""
        endpoint = scope.get("endpoint")
        if endpoint is None:
            return UNMATCHED
        root_path = scope.get("root_path", "")
        leaf = self._leaf(scope, endpoint, root_path)
        if root_path == outer:
            return leaf
        return self._mounted(root_path[len(outer) :], leaf)

    def _leaf(self, scope: Scope, endpoint: Any, root_path: str) -> str:
        route = scope.get("route")
        if route is not None:
            context = context_of(scope)
            if context is not None and context.original_route is route:
                return str(context.path_format)
            if getattr(route, "endpoint", None) is endpoint:
                return str(getattr(route, "path_format", UNMATCHED))
            if getattr(route, "app", None) is endpoint:
                return _REST if hasattr(route, "path_format") else UNMATCHED
        self._read_routes()
        rest = scope["path"].removeprefix(root_path)
        for pattern, template in self._endpoints.get(id(endpoint), ()):
            if pattern.match(rest):
                return template
        return UNMATCHED

    def _mounted(self, prefix: str, leaf: str) -> str:
        self._read_routes()
        constant = self._constant_mounts.get(prefix)
        if constant is not None:
            return constant + leaf
        for pattern, template in self._parameter_mounts:
            if pattern.fullmatch(prefix):
                return template + leaf
        return UNMATCHED

    def _read_routes(self) -> None:
        routes = getattr(self._app, "routes", ())
        if len(routes) != self._routes_read:
            self._routes_read = len(routes)
            self._constant_mounts, self._parameter_mounts, self._endpoints = {}, [], {}
            self._read(routes, "", "")

    def _read(self, routes: Iterable[Any], template: str, pattern: str) -> None:
        for route in _flat(routes):
            path_regex = getattr(route, "path_regex", None)
            inner = getattr(route, "routes", None)
            if path_regex is None or not hasattr(route, "path_format"):
                self._read(inner or (), template, pattern)
            elif hasattr(route, "endpoint"):
                self._endpoints.setdefault(id(route.endpoint), []).append((path_regex, route.path_format))
            elif hasattr(route, "app"):
                self._endpoints.setdefault(id(route.app), []).append((_ANYTHING, _REST))
                self._read_mount(route, inner or (), template, pattern)

    def _read_mount(self, mount: Any, inner: Iterable[Any], template: str, pattern: str) -> None:
        template += mount.path_format.removesuffix(_REST)
        own = mount.path_regex.pattern.removeprefix("^").removesuffix(_REST_PATTERN)
        pattern += re.sub(r"\?P<\w+>", "?:", own)
        if "{" in template:
            self._parameter_mounts.append((re.compile(pattern), template))
        else:
            self._constant_mounts[template] = template
        self._read(inner, template, pattern)


def templates_of(app: Any) -> set[str]:
    """Return the full templates of all routes of ``app``, and the prefixes of its mounts."""
    return set(_templates(getattr(app, "routes", ()), ""))


def _templates(routes: Iterable[Any], prefix: str) -> Iterator[str]:
    for route in _flat(routes):
        template = prefix + str(getattr(route, "path_format", "")).removesuffix(_REST)
        yield template
        yield from _templates(getattr(route, "routes", None) or (), template)


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield getattr(context, "starlette_route", None) or context
