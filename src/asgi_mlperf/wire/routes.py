"""FastAPI routes whose untyped endpoints may return arrays. The only module here that needs FastAPI."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import Depends, HTTPException, Request, routing
from fastapi.datastructures import Default, DefaultPlaceholder
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from asgi_mlperf.exceptions import BodyRefused
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.responses import ORJSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi.dependencies.models import Dependant

    from asgi_mlperf.wire.tables import TableBody

__all__ = ["Array", "ORJSONRoute", "parsed"]

_INJECTED = "_asgi_mlperf_injected"
_PARSER = "_asgi_mlperf_parser"
_UNPROCESSABLE = 422
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
_NO_BODY = {204, 205, 304}
_NOTHING_TO_FIND = {
    "call",
    "dependencies",
    "name",
    "path",
    "request_param_name",
    "use_cache",
    "scope",
    "cache_key",
}

try:
    from fastapi.telemetry import get_telemetry_data
except ImportError:  # a FastAPI without telemetry of its own
    get_telemetry_data = lambda: None  # type: ignore[assignment,misc] # noqa: E731 - observed by nobody


class ORJSONRoute(APIRoute):
    """A FastAPI route that answers with :class:`ORJSONResponse` where FastAPI has no better way.

    Endpoints without a return annotation or response model may return arrays, tensors and whatever
    ``ORJSONResponse`` takes; headers, cookies and status set on an injected ``Response`` are kept. Endpoints
    with a response model, a response class of their own or a generator are left as they are, and so is
    OpenAPI. Use it as ``APIRouter(route_class=ORJSONRoute)`` or ``app.router.route_class = ORJSONRoute``.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Take what ``APIRoute`` takes."""
        if _is_untyped(endpoint, options):
            endpoint = _answering(endpoint, options.get("status_code"))
        super().__init__(path, endpoint, **options)
        _describe_bodies(self)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, or a shorter way to the same response.

        Where the endpoint takes nothing but a body of :class:`Array`'s and the request, there is nothing for
        FastAPI to validate, resolve or close. Overridden dependencies and FastAPI's own telemetry are left to
        FastAPI's handler.
        """
        handler = super().get_route_handler()
        return _short_way(handler) or handler


def parsed(parser: ArrayBody | TableBody) -> Any:
    """What stands in ``Annotated`` to fill a FastAPI parameter from the request body.

    ``x: Annotated[NDArray[np.float32], parsed(ArrayBody(np.float32, "n 256"))]``. A body that is not what was
    declared becomes a ``RequestValidationError``. :class:`ORJSONRoute` shows the body in OpenAPI.
    """

    async def read(request: Request) -> Any:
        try:
            return await parser(request)
        except BodyRefused as refusal:
            if refusal.status_code == _UNPROCESSABLE:
                raise RequestValidationError(refusal.errors) from refusal
            raise HTTPException(refusal.status_code, refusal.errors) from refusal

    setattr(read, _PARSER, parser)
    return Depends(read)


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
        parser = getattr(dependency.call, _PARSER, None)
        if parser is not None:
            told = {"requestBody": parser.openapi(), "responses": _REFUSALS}
            route.openapi_extra = told | (route.openapi_extra or {})


def _is_untyped(endpoint: Callable[..., Any], options: dict[str, Any]) -> bool:
    model = options.get("response_model", Default(None))
    if isinstance(model, DefaultPlaceholder):
        model = inspect.signature(endpoint).return_annotation
    return (
        model in (None, "None", inspect.Signature.empty)
        and isinstance(options.get("response_class", Default(None)), DefaultPlaceholder)
        and not inspect.isgeneratorfunction(endpoint)
        and not inspect.isasyncgenfunction(endpoint)
        and not hasattr(endpoint, _INJECTED)
    )


async def _inject(response: Response) -> Response:
    return response


def _answering(endpoint: Callable[..., Any], status_code: int | None) -> Callable[..., Any]:
    """The endpoint with one more parameter, FastAPI's injected ``Response``, and a response as result."""
    if iscoroutinefunction(endpoint) or iscoroutinefunction(type(endpoint).__call__):

        @wraps(endpoint)
        async def answering(**values: Any) -> Response:
            injected = values.pop(_INJECTED)
            return _answer(await endpoint(**values), injected, status_code)

    else:

        @wraps(endpoint)
        def answering(**values: Any) -> Response:
            injected = values.pop(_INJECTED)
            return _answer(endpoint(**values), injected, status_code)

    signature = inspect.signature(endpoint)
    extra = inspect.Parameter(
        _INJECTED, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Any, Depends(_inject)]
    )
    parameters = [*signature.parameters.values(), extra]
    answering.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # for inspect
    setattr(answering, _INJECTED, True)
    return answering


def _answer(result: object, injected: Response | None, status_code: int | None) -> Response:
    if isinstance(result, Response):
        return result
    status = (injected and injected.status_code) or status_code or 200
    empty = status in _NO_BODY
    response = (
        Response(None, status, media_type="application/json") if empty else ORJSONResponse(result, status)
    )
    if injected is not None:
        response.raw_headers.extend(injected.raw_headers)
    return response


def _short_way(handler: Callable[..., Any]) -> Callable[[Request], Coroutine[Any, Any, Response]] | None:
    """Return what answers as ``handler`` does without FastAPI's general machinery, if there is such a way."""
    if getattr(handler, "__globals__", None) is not vars(routing):
        return None  # another library's handler around FastAPI's
    found = inspect.getclosurevars(handler).nonlocals  # what FastAPI goes by, router dependencies and all
    dependant: Dependant | None = found.get("dependant")
    if dependant is None or dependant.call is None or not hasattr(dependant.call, _INJECTED):
        return None
    endpoint: Callable[..., Any] = dependant.call
    readers = [each for each in dependant.dependencies if each.call is not _inject]
    if len(readers) > 1 or not all(_is_reader(each) for each in readers) or not _is_plain(dependant):
        return None
    overridable = found.get("dependency_overrides_provider")
    takes: dict[Any, Any] = {each.name: each.call for each in readers}
    request_name = dependant.request_param_name
    is_coroutine = iscoroutinefunction(endpoint)

    async def answer(request: Request) -> Any:
        overrides = getattr(overridable, "dependency_overrides", None)
        if overrides or get_telemetry_data() is not None:
            return await handler(request)
        values: dict[str, Any] = {name: await read(request) for name, read in takes.items()}
        values[_INJECTED] = None
        if request_name is not None:
            values[request_name] = request
        if is_coroutine:
            return await endpoint(**values)
        return await run_in_threadpool(endpoint, **values)

    return answer


def _is_reader(dependant: Dependant) -> bool:
    return hasattr(dependant.call, _PARSER) and dependant.name is not None and _is_plain(dependant)


def _is_plain(dependant: Dependant) -> bool:
    """Tell whether FastAPI has nothing to find for a function's parameters but the request."""
    wanted = (
        getattr(dependant, each.name) for each in fields(dependant) if each.name not in _NOTHING_TO_FIND
    )
    return not any(wanted)
