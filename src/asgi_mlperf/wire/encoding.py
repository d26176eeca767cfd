"""JSON text for whatever handlers return: one orjson call, and where that fails, the exact walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import models, tensors
from asgi_mlperf.wire.exact import Walk
from asgi_mlperf.wire.objects import simplify

if TYPE_CHECKING:
    from asgi_mlperf.wire.responses import JSONSettings


def dumps(content: object, settings: JSONSettings) -> bytes:
    """The JSON text of ``content``, in UTF-8, without spaces.

    Raises:
        UnserializableError: JSON cannot say it; names the path to the offending value.
    """
    if settings.is_plain:
        try:
            return _fast(content)
        except (orjson.JSONEncodeError, UnserializableError):
            pass
    return b"".join(Walk(settings).texts(content))


def _fast(content: object) -> bytes:
    # orjson's own dataclass support skips names with a leading underscore and adds cached properties.
    return orjson.dumps(content, default=_default, option=orjson.OPT_PASSTHROUGH_DATACLASS)


def _default(value: object) -> object:
    if tensors.is_numbers(value):
        return orjson.Fragment(tensors.dumps(value))
    if models.is_model(value):
        return orjson.Fragment(models.dumps(value, _fast))
    return simplify(value)
