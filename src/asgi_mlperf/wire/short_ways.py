"""The short way of a FastAPI route that takes a body of arrays and nothing else. Needs FastAPI."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from fastapi import HTTPException, Request, routing
from fastapi.exceptions import RequestValidationError
from starlette.routing import Route

from asgi_mlperf.exceptions import BodyRefused
from asgi_mlperf.route_cache import answer_error, is_frameworks
from asgi_mlperf.wire.answering import request_of, send_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi.dependencies.models import Dependant
    from starlette.responses import Response
    from starlette.types import Scope

    from asgi_mlperf.wire.answering import Asked
    from asgi_mlperf.wire.bodies import Body

PARSER = "_asgi_mlperf_parser"
"""The attribute of a dependency that says that it reads the body and needs only the request."""
_UNPROCESSABLE = 422
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


def reader_of(parser: Body[Any]) -> Callable[[Request], Any]:
    """Return a FastAPI dependency that gives what ``parser`` reads, and refuses as FastAPI does."""

    async def read(request: Request) -> Any:
        try:
            return await parser(request)
        except BodyRefused as refusal:
            raise _as_fastapi(refusal) from refusal

    setattr(read, PARSER, parser)
    return read


def _as_fastapi(refusal: BodyRefused) -> Exception:
    if refusal.status_code == _UNPROCESSABLE:
        return RequestValidationError(refusal.errors)
    return HTTPException(refusal.status_code, refusal.errors)


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


class Answer(Protocol):
    """Makes an answer of what an endpoint returned."""

    def response(self, result: object) -> Response:
        """The response."""

    def shortest(self, result: object) -> bytes | Response:
        """The same, but the body alone where that says all of an ``ORJSONResponse``."""


class ShortWay(NamedTuple):
    """How a route answers a request without FastAPI's general machinery, and when it may."""

    handler: Callable[..., Any]
    applies: Callable[[Scope], bool]
    answer: Callable[[Asked], Coroutine[Any, Any, None]]


def short_way_of(app: Any) -> ShortWay | None:
    """The short way to what ``app`` does, if that is FastAPI's around a handler of :func:`short_way`."""
    if getattr(app, "__code__", None) is not _FASTAPIS_APP:
        return None
    handler = app.__closure__[_HANDLER].cell_contents
    found: ShortWay | None = getattr(handler, _SHORT_WAY, None)
    return found if found is not None and found.handler is handler else None  # wraps() copies attributes


def is_fastapis_handle(handle: Callable[..., Any]) -> bool:
    """Whether a route's bound method ``handle`` and what it calls are FastAPI's and Starlette's own."""
    return getattr(handle, "__func__", None) is _FASTAPIS_HANDLE and Route.handle is _STARLETTES_HANDLE


def short_way(
    handler: Callable[..., Any],
    found: dict[str, Any],
    takes: dict[str, Callable[..., Any]],
    declared: Callable[..., Any],
    answer: Answer,
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Answer as ``handler`` does, without FastAPI's general machinery.

    ``found`` is what that goes by, ``takes`` what reads a parameter from the body. Called is ``declared``,
    and ``answer`` makes a response of what it returns, as long as nobody put anything around the endpoint.
    """
    applies, short = _where_short(found), _answers(found, takes, declared, answer.response)

    async def respond(request: Request) -> Any:
        return await (short if applies(request.scope) else handler)(request)

    if found["dependant"].request_param_name is None:  # else it may look for FastAPI's exit stacks
        responding = _responding(short, found, takes, declared, answer)
        setattr(respond, _SHORT_WAY, ShortWay(respond, applies, responding))
    return respond


def _responding(
    short: Callable[[Request], Coroutine[Any, Any, Any]],
    found: dict[str, Any],
    takes: dict[str, Callable[..., Any]],
    declared: Callable[..., Any],
    answer: Answer,
) -> Callable[[Asked], Coroutine[Any, Any, None]]:
    dependant = found["dependant"]
    around = dependant.call
    name, reader = next(iter(takes.items()), ("", None))  # there is no second
    own = getattr(reader, PARSER).own if getattr(reader, "__code__", None) is _READER else None
    is_direct = found["is_coroutine"] and (reader is None or own is not None)

    async def respond(asked: Asked) -> None:
        request = None
        try:
            if is_direct and dependant.call is around:  # as ``short``, with coroutines less
                values = {}
                if own is not None:
                    try:
                        values[name] = await own(asked)
                    except BodyRefused as refusal:
                        raise _as_fastapi(refusal) from refusal
                sent = answer.shortest(await declared(**values))
            else:
                request = request_of(asked)
                sent = await short(request)
        except Exception as error:  # noqa: BLE001 - raised again where the app's handlers take it
            await answer_error(error, request or request_of(asked, error), asked.send)
            return
        await send_answer(sent, asked, request)

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
    answer: Callable[[object], Response],
) -> Callable[[Request], Coroutine[Any, Any, Any]]:
    dependant, is_coroutine = found["dependant"], found["is_coroutine"]
    request_name, around = dependant.request_param_name, dependant.call
    readers = tuple(takes.items())

    async def short(request: Request) -> Any:
        values: dict[str, Any] = {}
        for name, read in readers:
            values[name] = await read(request)
        if request_name is not None:
            values[request_name] = request
        if is_coroutine and dependant.call is around:
            return answer(await declared(**values))
        if is_coroutine and dependant.call is not None:  # somebody put a function of their own around it
            return await dependant.call(**values)
        return await routing.run_endpoint_function(
            dependant=dependant, values=values, is_coroutine=is_coroutine
        )

    return short


def _nobody(_request: Request) -> Response:
    raise NotImplementedError


def _own(method: Any, *modules: str) -> Any:
    """``method``, unless somebody else's is in its place."""
    return method if is_frameworks(method) and method.__module__ in modules else None


def _fastapis_app() -> tuple[Any, int]:
    """The code of the app that FastAPI makes of a handler, and which of its cells holds that."""
    code = getattr(routing.request_response(_nobody), "__code__", None)
    cells = getattr(code, "co_freevars", ())
    if "f" not in cells:
        return _nobody, 0  # which is no app's code: FastAPI is not as it is known here
    return code, cells.index("f")


_READER = getattr(reader_of(cast("Any", _nobody)), "__code__", None)
_FASTAPIS_APP, _HANDLER = _fastapis_app()
_FASTAPIS_HANDLE = _own(routing.APIRoute.handle, "fastapi.routing", "starlette.routing") or _nobody
_STARLETTES_HANDLE = _own(Route.handle, "starlette.routing") or _nobody
