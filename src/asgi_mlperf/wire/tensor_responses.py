"""One array, many formats: the client's ``Accept`` header decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response

from asgi_mlperf.wire import formats
from asgi_mlperf.wire.negotiation import negotiate
from asgi_mlperf.wire.pacing import LIGHT, Pace
from asgi_mlperf.wire.responses import ORJSONResponse, json_settings
from asgi_mlperf.wire.sending import collect, send_pieces
from asgi_mlperf.wire.timing import clock, encoded
from asgi_mlperf.wire.weight import weigh

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.background import BackgroundTask
    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.wire.sending import Body


class TensorResponse(Response):
    """An array, or a mapping of names to arrays, in the format that the client likes best.

    JSON (as :class:`ORJSONResponse` writes it), ``application/x-npy``, ``application/octet-stream`` with
    ``X-Tensor-Dtype`` and ``X-Tensor-Shape`` headers (C order, little-endian), ``application/x-safetensors``
    and, if ``pyarrow`` is installed, ``application/vnd.apache.arrow.stream``. Without an ``Accept`` header:
    JSON. The first two binary formats hold one array. bfloat16 and float8 travel as float32, and NaN stays
    NaN. A client that accepts none of them gets 406.

    The body is made when the response is sent, since only then the request is known.

    Raises:
        UnserializableError: the format cannot say the content; names the array, before anything is sent.
    """

    CONTENT: ClassVar[dict[str, dict[str, Any]]] = {
        formats.JSON: {"schema": {}},
        **{
            media_type: {"schema": {"type": "string", "format": "binary", "contentMediaType": media_type}}
            for media_type in (formats.NPY, formats.RAW, formats.SAFETENSORS, formats.ARROW)
        },
    }
    """For OpenAPI: ``responses={200: {"content": TensorResponse.CONTENT}}``."""

    def __init__(
        self,
        content: object,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        *,
        name: str = "data",
    ) -> None:
        """Hold ``content``; a single array is called ``name`` in the formats that name their arrays."""
        self._content = content
        self._name = name
        self._settings = json_settings.get()
        super().__init__(None, status_code, headers, background=background)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Negotiate, encode, send."""
        offers = formats.offers(self._content)
        media_type = negotiate(Headers(scope=scope).get("accept"), offers)
        self.headers.setdefault("vary", "Accept")
        if media_type is None:
            await PlainTextResponse(f"This resource comes as {', '.join(offers)}.", 406)(scope, receive, send)
        elif media_type == formats.JSON:
            response = ORJSONResponse(self._content, self.status_code, background=self.background)
            response.raw_headers.extend(self.raw_headers)
            await response(scope, receive, send)
        else:
            await send_pieces(self, await self._encoded(media_type), scope, send)

    async def _encoded(self, media_type: str) -> Body:
        began = clock()
        if weigh(self._content) >= self._settings.offload_bytes or formats.must_load(media_type):
            body, headers = await to_thread.run_sync(self._encode, media_type, Pace())
        else:
            body, headers = self._encode(media_type, LIGHT)
        encoded(formats.NAMES[media_type], began)
        self.headers.update(headers)
        self.headers["content-type"] = media_type
        self.headers["content-length"] = str(sum(map(len, body)))
        return body

    def _encode(self, media_type: str, pace: Pace) -> tuple[Body, dict[str, str]]:
        pieces, headers = formats.encode(self._content, media_type, self._name)
        return collect(pieces, pace), headers
