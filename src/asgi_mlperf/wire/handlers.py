"""How FastAPI's handler of requests is made to answer with arrays. Needs FastAPI."""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from fastapi import Request, routing
from fastapi.datastructures import DefaultPlaceholder
from fastapi.encoders import jsonable_encoder
from starlette.responses import JSONResponse, Response

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire.responses import ORJSONResponse, light_text, simplified
from asgi_mlperf.wire.short_ways import only_bodies, short_way

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi.dependencies.models import Dependant
    from fastapi.routing import APIRoute

log = logging.getLogger("asgi_mlperf")

_INJECTED = "_asgi_mlperf_injected"
_DECLARED = "_asgi_mlperf_declared"
_NO_BODY = {204, 205, 304}
_NEEDED = {
    "dependant",
    "actual_response_class",
    "response_field",
    "is_coroutine",
    "dependency_overrides_provider",
}


def answering_handler(
    route: APIRoute, handler: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Let ``handler``, just made for ``route``, answer with ``ORJSONResponse`` where the response is for us.

    Returns ``handler``, or what does the same without what FastAPI does in vain for such an endpoint.
    """
    found = _found_by_fastapi(handler)
    if found is None:
        log.warning("FastAPI's request handler is not as asgi-mlperf knows it: %s is left to it", route.path)
        return handler
    dependant: Dependant = found["dependant"]
    response_class = _response_class(route, found)
    if response_class is None or dependant.call is None:
        return handler
    takes = only_bodies(dependant) if _is_fastapis(handler) else None
    dependant.response_param_name = injected = dependant.response_param_name or _INJECTED
    answer = _Answer(injected, response_class, route.status_code)
    declared = getattr(dependant.call, _DECLARED, dependant.call)
    dependant.call = _answering(declared, answer, is_coroutine=found["is_coroutine"])
    setattr(dependant.call, _DECLARED, declared)  # the handler of a route may be made again
    return handler if takes is None else short_way(handler, found, takes, declared, answer)


def _is_fastapis(handler: object) -> bool:
    return getattr(handler, "__globals__", None) is vars(routing)


def _found_by_fastapi(handler: Any, depth: int = 4) -> dict[str, Any] | None:
    """What FastAPI's handler goes by, routers' and apps' dependencies included; others may be around it."""
    if _is_fastapis(handler):
        found = inspect.getclosurevars(handler).nonlocals
        return dict(found) if found.keys() >= _NEEDED else None
    inner = [getattr(handler, "__wrapped__", None)]
    for cell in getattr(handler, "__closure__", None) or ():
        with suppress(ValueError):  # empty so far
            inner.append(cell.cell_contents)
    deeper = (_found_by_fastapi(each, depth - 1) for each in inner if depth and callable(each))
    return next((found for found in deeper if found is not None), None)


def _response_class(route: APIRoute, found: dict[str, Any]) -> type[ORJSONResponse] | None:
    """What an endpoint of the route is answered with, or nothing where that is for FastAPI to do."""
    declared: type[Response] = found["actual_response_class"]
    if found["response_field"] is not None or _is_generator(found["dependant"].call):
        return None
    if issubclass(declared, ORJSONResponse):
        return declared
    is_default = isinstance(route.response_class, DefaultPlaceholder) and declared is JSONResponse
    return ORJSONResponse if is_default else None


def _is_generator(endpoint: Any) -> bool:
    while isinstance(endpoint, partial):
        endpoint = endpoint.func
    endpoint = inspect.unwrap(endpoint)
    functions = (endpoint, getattr(endpoint, "__call__", None))  # noqa: B004 - the method itself is looked at
    return any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in functions)


class _Answer:
    """Makes the response of what an endpoint returned.

    ``injected`` is the parameter that FastAPI fills with the ``Response`` whose headers are merged into ours.
    """

    __slots__ = ("_injected", "_is_usual", "_response_class", "_status_code")

    def __init__(self, injected: str, response_class: type[ORJSONResponse], status_code: int | None) -> None:
        self._injected = injected
        self._response_class = response_class
        self._status_code = status_code
        self._is_usual = response_class is ORJSONResponse and status_code is None

    def response_of(self, values: dict[str, Any]) -> Response | None:
        """Take what FastAPI injected, which the endpoint gets only if it asked for it."""
        found: Response | None = values.get(self._injected)
        if self._injected == _INJECTED:
            values.pop(_INJECTED, None)
        return found

    def shortest(self, result: object) -> bytes | Response:
        """The same, but the body alone where that says all of an ``ORJSONResponse``."""
        text = light_text(result) if self._is_usual else None
        return self.response(result) if text is None else text

    def response(self, result: object, injected: Response | None = None) -> Response:
        """The response to what an endpoint returned, with what FastAPI injected merged into it."""
        if isinstance(result, Response):
            return result
        status = (injected and injected.status_code) or self._status_code
        if status in _NO_BODY:
            response = Response(None, status, media_type="application/json")
        else:
            response = self._written(result, {} if status is None else {"status_code": status})
        if injected is not None:
            response.raw_headers.extend(injected.raw_headers)
        return response

    def _written(self, result: object, told: dict[str, Any]) -> Response:
        simpler = partial(jsonable_encoder, result)
        try:
            response = self._response_class(result, **told)
        except UnserializableError as error:
            return self._response_class(simplified(simpler, error), **told)
        response.simpler = simpler
        return response


def _answering(endpoint: Callable[..., Any], answer: _Answer, *, is_coroutine: bool) -> Callable[..., Any]:
    """The endpoint with a response as its result."""
    if is_coroutine:

        @wraps(endpoint)
        async def answering(**values: Any) -> Response:
            injected = answer.response_of(values)
            return answer.response(await endpoint(**values), injected)

    else:

        @wraps(endpoint)
        def answering(**values: Any) -> Response:
            injected = answer.response_of(values)
            return answer.response(endpoint(**values), injected)

    return answering
