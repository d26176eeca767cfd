"""What Starlette does around an endpoint, for endpoints that are called without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette._exception_handler import wrap_app_handling_exceptions  # as Starlette and FastAPI do

from asgi_mlperf.wire.responses import ORJSONResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Send


def send_answer(answer: bytes | Response, request: Request, send: Send) -> Awaitable[None]:
    """Send a response, or what an ``ORJSONResponse`` with this body would.

    What a response raises goes to the handlers of the app.
    """
    if isinstance(answer, bytes):
        return _send_text(answer, send)
    only_sends = type(answer) is ORJSONResponse and hasattr(answer, "body") and not answer.background
    app = answer if only_sends else wrap_app_handling_exceptions(answer, request)
    return app(request.scope, request.receive, send)


async def _send_text(text: bytes, send: Send) -> None:
    headers = [(b"content-length", b"%d" % len(text)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})
