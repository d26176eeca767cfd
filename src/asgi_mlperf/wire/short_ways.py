"""The short way of a FastAPI route that takes a body of arrays and nothing else. Needs FastAPI."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import Request, routing
from starlette._exception_handler import wrap_app_handling_exceptions  # as FastAPI does

from asgi_mlperf.wire.responses import ORJSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi.dependencies.models import Dependant
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

PARSER = "_asgi_mlperf_parser"
"""The attribute of a dependency that says that it reads the body and needs only the request."""
_SHORT_WAY = "_asgi_mlperf_short_way"
_TELEMETRY = "fastapi.telemetry"
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


def only_bodies(dependant: Dependant) -> dict[str, Callable[..., Any]] | None:
    """The reader of the one body by its parameter's name, where FastAPI has nothing else to find."""
    readers = dependant.dependencies
    if len(readers) > 1 or not all(map(_is_plain, (dependant, *readers))):
        return None
    takes = {
        each.name: each.call for each in readers if each.name and each.call and hasattr(each.call, PARSER)
    }
    return takes if len(takes) == len(readers) else None


def _is_plain(dependant: Dependant) -> bool:
    """Tell whether FastAPI has nothing to find for a function's parameters but the request."""
    looked_for = (each.name for each in fields(dependant) if each.name not in _NOTHING_TO_FIND)
    return not any(getattr(dependant, name) for name in looked_for)


class ShortWay(NamedTuple):
    """How a route answers a request without FastAPI's general machinery, and when it may."""

    dependant: Dependant
    """What FastAPI knows of the endpoint that is answered for."""
    applies: Callable[[Scope], bool]
    app: ASGIApp


def short_way_of(handler: Callable[..., Any]) -> ShortWay | None:
    """The short way of a handler that :func:`short_way` returned, if it has one."""
    found: ShortWay | None = getattr(handler, _SHORT_WAY, None)
    return found


def is_fastapis_app(app: object) -> bool:
    """Whether ``app`` is what FastAPI puts around a handler, with nothing else around it."""
    return getattr(app, "__code__", None) is _FASTAPIS_APP


def short_way(
    handler: Callable[..., Any],
    found: dict[str, Any],
    takes: dict[str, Callable[..., Any]],
    declared: Callable[..., Any],
    answer: Callable[[object, Response | None], Response],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Answer as ``handler`` does, without FastAPI's general machinery.

    ``found`` is what that goes by, ``takes`` what reads a parameter from the body. Called is ``declared``,
    and ``answer`` makes a response of what it returns, as long as nobody put anything around the endpoint.
    """
    applies, short = _where_short(found), _answers(found, takes, declared, answer)

    async def respond(request: Request) -> Any:
        return await (short if applies(request.scope) else handler)(request)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await short(request)
        except Exception as error:  # noqa: BLE001 - raised again where the app's handlers take it
            await wrap_app_handling_exceptions(_raising(error), request)(scope, receive, send)
            return
        if type(response) is ORJSONResponse and hasattr(response, "body"):  # only sending can fail
            await response(scope, receive, send)
        else:
            await wrap_app_handling_exceptions(response, request)(scope, receive, send)

    setattr(respond, _SHORT_WAY, ShortWay(found["dependant"], applies, app))
    return respond


def _where_short(found: dict[str, Any]) -> Callable[[Scope], bool]:
    overridable, dependant = found["dependency_overrides_provider"], found["dependant"]
    known = list(dependant.dependencies)

    def applies(scope: Scope) -> bool:
        overrides = getattr(overridable, "dependency_overrides", None)
        return not overrides and dependant.dependencies == known and scope.get(_TELEMETRY) is None

    return applies


def _answers(
    found: dict[str, Any],
    takes: dict[str, Callable[..., Any]],
    declared: Callable[..., Any],
    answer: Callable[[object, Response | None], Response],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    dependant, is_coroutine = found["dependant"], found["is_coroutine"]
    request_name, answering = dependant.request_param_name, dependant.call
    readers = tuple(takes.items())

    async def short(request: Request) -> Any:
        values: dict[str, Any] = {}
        for name, read in readers:
            values[name] = await read(request)
        if request_name is not None:
            values[request_name] = request
        if is_coroutine and dependant.call is answering:
            return answer(await declared(**values), None)
        if is_coroutine and dependant.call is not None:  # somebody put a function of their own around it
            return await dependant.call(**values)
        return await routing.run_endpoint_function(
            dependant=dependant, values=values, is_coroutine=is_coroutine
        )

    return short


def _raising(error: Exception) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    return app


def _nobody(_request: Request) -> Response:
    raise NotImplementedError


_FASTAPIS_APP = getattr(routing.request_response(_nobody), "__code__", None)
