"""FastAPI routes whose untyped endpoints may return arrays. Needs FastAPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.routing import Route

from asgi_mlperf.route_cache import SCOPE_KEY, context_of
from asgi_mlperf.wire.answering import Routed
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.handlers import answering_handler
from asgi_mlperf.wire.short_ways import PARSER, is_fastapis_handle, reader_of, short_way_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.route_cache import Holds
    from asgi_mlperf.wire.short_ways import ShortWay
    from asgi_mlperf.wire.tables import TableBody

__all__ = ["Array", "ORJSONRoute", "parsed"]

_DETAIL = {
    "type": "object",
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
                    "msg": {"type": "string"},
                },
                "required": ["type", "loc", "msg"],
            },
        }
    },
}
_REFUSALS = {
    status: {"description": text, "content": {"application/json": {"schema": _DETAIL}}}
    for status, text in (("413", "Too large"), ("415", "Unknown format"), ("422", "Not what was declared"))
}


class ORJSONRoute(APIRoute):
    """A FastAPI route that answers with :class:`ORJSONResponse` where FastAPI has no better way.

    Endpoints without a return annotation or response model may return arrays, tensors and whatever
    ``ORJSONResponse`` or FastAPI can write; headers, cookies and status set on an injected ``Response`` are
    kept. Endpoints with a response model, a response class of their own or of their router, or a generator
    are left as they are, and so is OpenAPI. Where an endpoint takes nothing but a body of :class:`Array`'s
    and the request, FastAPI's dependency solving is left out, and without the request its exit stacks too,
    unless dependencies are overridden, FastAPI's own telemetry observes the request, or others put something
    around the route. Use it as ``APIRouter(route_class=ORJSONRoute)`` or
    ``app.router.route_class = ORJSONRoute``.
    """

    _latest: tuple[Any, ShortWay | None] = None, None
    """The app that answered last, and its short way; of a route that is included twice it varies."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Take what ``APIRoute`` takes."""
        super().__init__(path, endpoint, **options)
        _describe_bodies(self)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler with an endpoint that answers, or a shorter way to the same response."""
        return answering_handler(self, super().get_route_handler())

    def handle(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Answer a request, the short way if there is one and nobody put anything around FastAPI's."""
        source = self._source(scope)
        short = self._short(source, scope)
        if short is None:
            return super().handle(scope, receive, send)
        cache = scope.get(SCOPE_KEY)
        kind = type(self)
        if cache is not None and kind.handle is _HANDLE and kind.__mro__[-len(_CLASSES) :] == _CLASSES:
            holds = self._holds(source, short)
            cache.enter(scope, short.answer, holds, (APIRoute, "handle"), (Route, "handle"))
        return short.answer(Routed(scope, receive, send))  # not awaited: a coroutine less in every request

    def _short(self, source: Any, scope: Scope) -> ShortWay | None:
        app, short = self._latest
        if app is not source.app:
            app, short = self._latest = source.app, short_way_of(source.app)
        if (
            short is None
            or scope["method"] not in source.methods
            or not short.applies(scope)
            or not is_fastapis_handle(super().handle)
        ):
            return None
        return short

    def _holds(self, source: Any, short: ShortWay) -> Holds:
        """Return what tells whether the app's router came here and ``short`` still is the way to answer."""
        app, applies = source.app, short.applies

        def holds(first: Any, scope: Scope) -> bool:
            return (
                source.app is app
                and scope["method"] in source.methods
                and applies(scope)
                and (first is self if source is self else hasattr(first, "original_router"))
                and "handle" not in self.__dict__
                and "handle" not in first.__dict__
            )

        return holds

    def _source(self, scope: Scope) -> Any:
        """What says how to answer: the route, or FastAPI's view of it where it is included."""
        context = context_of(scope)
        return self if context is None or context.original_route is not self else context


_HANDLE, _CLASSES = ORJSONRoute.handle, ORJSONRoute.__mro__


def parsed(parser: ArrayBody | TableBody) -> Any:
    """What stands in ``Annotated`` to fill a FastAPI parameter from the request body.

    ``x: Annotated[NDArray[np.float32], parsed(ArrayBody(np.float32, "n 256"))]``. A body that is not what was
    declared becomes a ``RequestValidationError``. :class:`ORJSONRoute` shows the body in OpenAPI.
    """
    return Depends(reader_of(parser))


if TYPE_CHECKING:
    from typing import Annotated as Array
else:

    class Array:
        """A FastAPI parameter read from the body: ``x: Array[np.float32, "n 256"]``, an ``NDArray``.

        Type checkers see the dtype only; where that matters write ``Annotated`` with :func:`parsed`.
        """

        def __class_getitem__(cls, declaration: tuple[Any, str]) -> Any:
            """Declare a dtype and a shape."""
            return Annotated[np.ndarray, parsed(ArrayBody(*declaration))]


def _describe_bodies(route: APIRoute) -> None:
    for dependency in route.dependant.dependencies:
        parser = getattr(dependency.call, PARSER, None)
        if parser is not None:
            told = {"requestBody": parser.openapi(), "responses": _REFUSALS}
            route.openapi_extra = told | (route.openapi_extra or {})
