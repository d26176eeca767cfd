"""JSON responses that hold arrays and tensors as they are."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from asgi_mlperf.wire.encoding import dumps

if TYPE_CHECKING:
    from asgi_mlperf.hooks import Closer, Exchange, RequestHook


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

    @property
    def is_plain(self) -> bool:
        """Whether one orjson call says everything as it is asked for."""
        return self.nan == "null" and self.float_digits is None


json_settings: ContextVar[JSONSettings] = ContextVar("json_settings", default=JSONSettings())  # noqa: B039 - frozen
"""The settings in force for the current request."""


def use_json_settings(settings: JSONSettings) -> RequestHook:
    """A request hook that puts ``settings`` in force until the response has ended."""

    def begin(_exchange: Exchange) -> Closer:
        token = json_settings.set(settings)

        def end(_exchange: Exchange) -> None:
            # A streamed response may end in a task of its own, whose context dies with it.
            with suppress(ValueError):
                json_settings.reset(token)

        return end

    return begin


class ORJSONResponse(JSONResponse):
    """A JSON response whose content may hold arrays, tensors, models and what usually surrounds them.

    Arrays of NumPy, PyTorch and whatever speaks ``__array__`` or DLPack become nested lists of the same
    numbers, whatever their layout, dtype or device; records become objects, masked values ``null``. NaN and
    infinities become ``null`` unless the settings say otherwise. Bytes become base64, a ``timedelta`` its
    seconds, a ``Decimal`` all its digits; Pydantic and msgspec write their own models.

    Raises:
        UnserializableError: JSON cannot say the content; names the path to the offending value.
    """

    def render(self, content: Any) -> bytes:
        """The body: UTF-8 JSON without spaces."""
        return dumps(content, json_settings.get())
