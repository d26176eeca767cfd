"""JSON responses that hold arrays and tensors as they are."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import orjson
from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, StreamingResponse

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import arrays
from asgi_mlperf.wire.encoding import begin, pieces
from asgi_mlperf.wire.pacing import Pace
from asgi_mlperf.wire.sending import pack, send_pieces
from asgi_mlperf.wire.timing import clock, encoded
from asgi_mlperf.wire.weight import TEXT_PER_BYTE, weigh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from starlette.background import BackgroundTask
    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.wire.sending import Body


class JSONSettings(BaseModel):
    """How :class:`ORJSONResponse` writes what JSON leaves open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nan: Literal["null", "string", "error"] = Field(
        default="null",
        description="What NaN and infinities become: `null`, a string such as `NaN`, or a refused response.",
    )
    float_digits: int | None = Field(
        default=None,
        ge=1,
        le=17,
        description="Significant digits of floats; unset writes as many as it takes to read the same number.",
    )

    offload_bytes: int = Field(
        default=1_000_000,
        ge=0,
        description="Bodies of about this many bytes and more are written and read off the event loop, a "
        "millisecond at a time.",
    )

    body_limit_bytes: int = Field(
        default=64_000_000,
        ge=1,
        description="Request bodies read into arrays may have this many bytes; larger ones get 413.",
    )

    @property
    def is_plain(self) -> bool:
        """Whether one orjson call says everything as it is asked for."""
        return self.nan == "null" and self.float_digits is None


class Lightness:
    """What decides of a body whether it is light, worked out once for settings that are in force for long."""

    __slots__ = ("below_bytes", "digits", "is_plain", "offload_bytes", "settings")

    def __init__(self, settings: JSONSettings) -> None:
        """Work it out.

        A body of fewer than ``below_bytes`` is neither heavy nor too large, and so is one whose length has
        at most so many ``digits``.
        """
        self.settings = settings
        self.is_plain = settings.is_plain
        self.offload_bytes = settings.offload_bytes
        self.below_bytes = min(settings.offload_bytes, settings.body_limit_bytes + 1)
        self.digits = len(str(self.below_bytes)) - 1


json_settings: ContextVar[JSONSettings] = ContextVar("json_settings", default=JSONSettings())  # noqa: B039 - frozen
"""The settings in force for the current request."""

_lightness = Lightness(json_settings.get())


def lightness() -> Lightness:
    """What is light by the settings in force."""
    global _lightness  # noqa: PLW0603 - the latest; there is hardly ever another
    settings, known = json_settings.get(), _lightness
    if known.settings is not settings:
        known = _lightness = Lightness(settings)
    return known


def light_text(content: object) -> bytes | None:
    """The body of an :class:`ORJSONResponse` to a light array of numbers, which most models answer.

    None for all else, which the response itself writes.
    """
    light = lightness()
    if not light.is_plain or not arrays.is_numbers(content):
        return None
    size: int = content.nbytes  # type: ignore[attr-defined] # NumPy's
    if size * TEXT_PER_BYTE >= light.offload_bytes:
        return None
    began = clock()
    try:
        text = arrays.dumps(content)
    except orjson.JSONEncodeError:
        return None
    encoded("json", began)
    return text


class ORJSONResponse(JSONResponse):
    """A JSON response whose content may hold arrays, tensors, models and what usually surrounds them.

    Arrays of NumPy, PyTorch and whatever speaks ``__array__`` or DLPack become nested lists of the same
    numbers, whatever their layout, dtype or device; records become objects, masked values ``null``. NaN and
    infinities become ``null`` unless the settings say otherwise. Bytes become base64, a ``timedelta`` its
    seconds, a ``Decimal`` all its digits; Pydantic and msgspec write their own models.

    A heavy body (see ``offload_bytes``) is encoded only when it is sent, in a thread and in slices of about a
    millisecond, so that the event loop goes on; ``body`` is not there before.

    Raises:
        UnserializableError: JSON cannot say the content; names the path to the offending value. Raised when
            a heavy body is sent, and before anything of it is.
    """

    _later: Iterator[bytes] | None
    simpler: Callable[[], Any] | None = None
    """Makes what to write instead of a heavy content that cannot be written."""

    def render(self, content: Any) -> bytes:
        """The body: UTF-8 JSON without spaces."""
        self._later = None
        text = light_text(content)
        if text is not None:
            return text
        settings, began = json_settings.get(), clock()
        if weigh(content) >= settings.offload_bytes:
            self._later = pieces(content, settings)
            return b""
        text, self._later = begin(content, settings)
        if self._later is None:
            encoded("json", began)
        return text

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Leave the length of a body that is not there yet to :meth:`__call__`."""
        if self._later is not None:
            del self.body
        super().init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, encoding a heavy body first."""
        if self._later is None:
            await super().__call__(scope, receive, send)
            return
        began = clock()
        body = await to_thread.run_sync(self._collect, self._later, Pace())
        encoded("json", began)
        self.headers["content-length"] = str(sum(map(len, body)))
        await send_pieces(self, body, scope, send)

    def _collect(self, later: Iterator[bytes], pace: Pace) -> Body:
        try:
            return pack(later, pace)
        except UnserializableError as error:
            if self.simpler is None:
                raise
            simple = simplified(self.simpler, error)
            return pack(pieces(simple, json_settings.get()), pace)


def simplified(simpler: Callable[[], Any], error: UnserializableError) -> Any:
    """What ``simpler`` makes of content that led to ``error``, or that error if it cannot."""
    try:
        return simpler()
    except Exception:  # noqa: BLE001 - whatever an object's own methods raise
        raise error from None


class ORJSONStreamingResponse(StreamingResponse):
    """The same JSON, sent while it is encoded: bounded memory, no ``Content-Length``.

    The status is sent before the content is known to be sayable: an :class:`UnserializableError` then ends
    the connection in the middle of the body.
    """

    media_type = "application/json"

    def __init__(
        self,
        content: Any,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__(pieces(content, json_settings.get()), status_code, headers, background=background)
