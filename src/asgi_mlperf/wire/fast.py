"""The usual case in one orjson call. Whatever it cannot say, it refuses, and the exact walk says it."""

from __future__ import annotations

import orjson

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import arrays, models
from asgi_mlperf.wire.objects import simplify

_LARGE_BYTES = 262_144


def dumps(content: object) -> bytes:
    """The JSON text of ``content``, with every setting at its default.

    Raises:
        orjson.JSONEncodeError: not in one call, or not at all.
        UnserializableError: the same.
    """
    if arrays.is_numbers(content):
        return arrays.dumps(content)
    # orjson's own dataclass support skips names with a leading underscore and adds cached properties.
    return orjson.dumps(content, default=_default, option=orjson.OPT_PASSTHROUGH_DATACLASS)


def _default(value: object) -> object:
    if arrays.is_numbers(value):
        if value.nbytes > _LARGE_BYTES:  # type: ignore[attr-defined] # NumPy's
            raise UnserializableError("a large array, which is better written in slices")
        return orjson.Fragment(arrays.dumps(value))
    if models.is_model(value):
        return orjson.Fragment(models.dumps(value, dumps))
    return simplify(value)
