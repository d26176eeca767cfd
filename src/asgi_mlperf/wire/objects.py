"""What every other value that handlers return becomes on its way to JSON, one step at a time."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Generator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import orjson
import pydantic_core

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import tensors


def simplify(value: Any) -> object:
    """One step towards JSON for a value that orjson does not know.

    Bytes become base64, a ``timedelta`` its seconds, a ``Decimal`` all its digits, missing values of pandas
    ``None``. The result may hold values that need a step of their own.

    Raises:
        UnserializableError: JSON cannot say it; the message names what to do instead.
    """
    if tensors.is_array(value):
        return tensors.simplify(value)
    for kinds, convert in _STEPS:
        if isinstance(value, kinds):
            return convert(value)
    fields = _field_names(value)
    if fields is not None:
        return {name: getattr(value, name) for name in fields}
    return _by_pydantic(value)


def _field_names(value: object) -> list[str] | None:
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    attributes = getattr(type(value), "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]


def _by_pydantic(value: object) -> object:
    if type(value).__name__ == "NAType":
        return None
    try:
        return pydantic_core.to_jsonable_python(value)
    except Exception:  # noqa: BLE001 - whatever the properties of a stranger raise
        name = type(value).__qualname__
        raise UnserializableError(
            f"{name} cannot be written as JSON: turn it into a dict, list, str, number or array first"
        ) from None


def _decimal(value: Decimal) -> object:
    if value.is_finite():
        return orjson.Fragment(str(value))
    return float("nan") if value.is_nan() else float(value)


def _date(value: date | time) -> str | None:
    return None if type(value).__name__ == "NaTType" else value.isoformat()


def _base64(value: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else bytes(value)).decode("ascii")


def _refuse_complex(value: complex) -> object:
    raise UnserializableError(f"complex number {value}: JSON has none, return .real and .imag")


def _refuse_generator(value: Generator[Any, Any, Any]) -> object:
    raise UnserializableError(f"{type(value).__name__} can be read only once: wrap it in list()")


_STEPS: tuple[tuple[Any, Any], ...] = (
    (Enum, lambda value: value.value),
    (float, float),
    ((bytes, bytearray, memoryview), _base64),
    (Mapping, dict),
    ((Sequence, AbstractSet, ValuesView), list),
    (Decimal, _decimal),
    (timedelta, timedelta.total_seconds),
    ((date, time), _date),
    (os.PathLike, os.fsdecode),
    (complex, _refuse_complex),
    (Generator, _refuse_generator),
)
