"""Functions of what a body holds as endpoints of Starlette's routes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from starlette.responses import Response
from starlette.routing import Route

from asgi_mlperf.route_cache import SCOPE_KEY, answer_error, is_frameworks
from asgi_mlperf.wire.answering import Routed, request_of, send_answer
from asgi_mlperf.wire.responses import ORJSONResponse, light_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.route_cache import Holds
    from asgi_mlperf.wire.answering import Asked

Content = TypeVar("Content")
Content_co = TypeVar("Content_co", covariant=True)


class Reads(Protocol[Content_co]):
    """Reads something from the body of a request."""

    @property
    def own(self) -> Callable[[Asked], Awaitable[Content_co]] | None:
        """The same without Starlette's request; None where a call does something else."""

    async def __call__(self, request: Request, /) -> Content_co:
        """Return what is in it."""


class Endpoint(Generic[Content]):
    """An ASGI app that answers with what a function makes of the body; the function is ``__wrapped__``.

    What an ``ORJSONResponse`` can say becomes one; a ``Response`` is sent as it is. Errors go to the app's
    exception handlers.
    """

    __name__: str
    __wrapped__: Callable[[Content], Awaitable[object]]

    def __init__(self, body: Reads[Content], func: Callable[[Content], Awaitable[object]]) -> None:
        """Call ``func`` with what ``body`` reads from the request."""
        functools.update_wrapper(cast("Callable[..., Any]", self), func)
        # Afterwards: a batched function's own attributes may have this name.
        self._answer = _answering(body, func)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        cache = scope.get(SCOPE_KEY)
        if cache is not None and type(self).__call__ is _CALL:
            cache.enter(scope, self._answer, _holds(self), (Endpoint, "__call__"))
        await self._answer(Routed(scope, receive, send))


def _answering(
    body: Reads[Content], func: Callable[[Content], Awaitable[object]]
) -> Callable[[Asked], Awaitable[None]]:
    own = body.own

    async def answer(asked: Asked) -> None:
        request = None
        try:
            if own is None:
                request = request_of(asked)
                content = await body(request)
            else:
                content = await own(asked)
            result = await func(content)
            found: bytes | Response | None = light_text(result)
            if found is None:
                found = result if isinstance(result, Response) else ORJSONResponse(result)
        except Exception as error:  # noqa: BLE001 - raised again where the app's handlers take it
            await answer_error(error, request or request_of(asked, error), asked.send)
            return
        await send_answer(found, asked, request)

    return answer


def _holds(endpoint: Endpoint[Any]) -> Holds:
    """Return what tells whether ``endpoint`` is all there is behind a route."""

    def holds(route: Any, scope: Scope) -> bool:
        return (
            getattr(route, "app", None) is endpoint
            and type(route).handle is _HANDLE
            and "handle" not in route.__dict__
            and (not route.methods or scope["method"] in route.methods)
        )

    return holds


_CALL = Endpoint.__call__
_HANDLE = Route.handle if is_frameworks(Route.handle) else None
