"""Models that bring their own encoder (Pydantic, msgspec) use it; only what it cannot say is parked for us.

A parked value is replaced by an unguessable placeholder in the library's output, and the placeholder by the
value's own JSON afterwards. So aliases, tags, custom serialisers and formats stay the library's business.
"""

from __future__ import annotations

import re
import secrets
import sys
from typing import TYPE_CHECKING, Any

from asgi_mlperf.exceptions import UnserializableError

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = secrets.token_hex(16)
_PARKED = re.compile(rb'"%s-(\d+)"(:?)' % _TOKEN.encode())


class Parking:
    """The values that a library's encoder handed back, by placeholder."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}

    def __call__(self, value: object) -> str:
        """Keep ``value`` and return its placeholder."""
        placeholder = f"{_TOKEN}-{len(self.values)}"
        self.values[placeholder] = value
        return placeholder


def is_model(value: object) -> bool:
    """Whether ``value`` is an instance of a Pydantic model or dataclass, or of a msgspec ``Struct``."""
    return not isinstance(value, type) and (
        hasattr(value, "__pydantic_serializer__") or hasattr(value, "__struct_fields__")
    )


def dumps(model: Any, encode: Callable[[object], bytes]) -> bytes:
    """The JSON text of ``model``, with parked values written by ``encode``.

    Raises:
        UnserializableError: the text would hold ``NaN``, or a parked dict key: take :func:`simplify` instead.
    """
    parking = Parking()
    if hasattr(model, "__pydantic_serializer__"):
        text: bytes = model.__pydantic_serializer__.to_json(model, by_alias=True, fallback=parking)
        if b"NaN" in text or b"Infinity" in text:
            raise UnserializableError("a number that is not finite")
    else:
        text = sys.modules["msgspec"].json.encode(model, enc_hook=parking)
    return _unpark(text, list(parking.values.values()), encode) if parking.values else text


def simplify(model: Any, parking: Parking) -> object:
    """The plain values of ``model``, with placeholders where ``parking`` took a value.

    Raises:
        UnserializableError: the library refuses; the message is its own.
    """
    try:
        if hasattr(model, "__pydantic_serializer__"):
            return model.__pydantic_serializer__.to_python(
                model, mode="json", by_alias=True, fallback=parking
            )
        return sys.modules["msgspec"].to_builtins(model, enc_hook=parking)
    except Exception as error:
        raise UnserializableError(f"{type(model).__qualname__} refused: {error}") from error


def _unpark(text: bytes, values: list[object], encode: Callable[[object], bytes]) -> bytes:
    def put_back(found: re.Match[bytes]) -> bytes:
        if found[2]:
            raise UnserializableError("a dict key that is not a string")
        return encode(values[int(found[1])])

    return _PARKED.sub(put_back, text)
