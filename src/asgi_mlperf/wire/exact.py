"""The slower, exact encoder: any depth, any key, any policy, and a path for what cannot be said."""

from __future__ import annotations

import json
import math
from datetime import date, datetime, time
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import arrays, fast, models, rounding, tensors
from asgi_mlperf.wire.objects import simplify
from asgi_mlperf.wire.weight import weigh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.wire.responses import JSONSettings

_SIMPLE = (str, int, float, list, tuple, dict, orjson.Fragment, type(None))
_NATIVE = (datetime, date, time, UUID)
_FLAT = {str, int, bool, type(None)}
_RUN = 1024
"""How many values of a container are tried in one call."""
_QUICK_BYTES = 262_144
_MOST_STEPS = 100


class _Entry(NamedTuple):
    key: object
    label: bytes
    value: object


class _Frame:
    """A container that is being written: what is left of it, and where in it we are."""

    __slots__ = ("close", "entries", "key", "separator", "source")

    def __init__(self, source: object, entries: Iterator[_Entry], close: bytes) -> None:
        self.source = source
        self.entries = entries
        self.close = close
        self.separator = b""
        self.key: object = None


class Walk:
    """One walk through one value. It keeps its own stack, so depth is bounded by memory alone."""

    def __init__(self, settings: JSONSettings) -> None:
        self._nan = settings.nan
        self._digits = settings.float_digits
        self._free = settings.is_plain
        self._frames: list[_Frame] = []
        self._open_ids: set[int] = set()
        self._parking = models.Parking()

    def texts(self, content: object) -> Iterator[bytes]:
        """The JSON text of ``content``, piece by piece, in order.

        Raises:
            UnserializableError: JSON cannot say it; names the path to the offending value.
        """
        try:
            yield self._open(content)
            while self._frames:
                yield self._advance(self._frames[-1])
        except UnserializableError as error:
            raise UnserializableError(f"{self._path()}: {error}") from error.__cause__

    def _advance(self, frame: _Frame) -> bytes:
        frame.key = None
        entry = next(frame.entries, None)
        if entry is None:
            self._open_ids.discard(id(self._frames.pop().source))
            return frame.close
        frame.key = entry.key
        text = frame.separator + entry.label + self._open(entry.value)
        frame.separator = b","
        return text

    def _open(self, value: object) -> bytes:
        """The whole text of a leaf, or the bracket that opens a container."""
        plain = self._plain(value)
        if tensors.is_splittable(plain):
            return self._push(value, self._rows(plain), b"[", b"]")
        if isinstance(plain, dict):
            return self._push(value, self._members(plain), b"{", b"}")
        if isinstance(plain, (list, tuple)):
            return self._push(value, self._items(plain), b"[", b"]")
        if arrays.is_numbers(plain):
            return self._numbers(value, plain)
        return self._scalar(plain)

    def _push(self, source: object, entries: Iterator[_Entry], opening: bytes, close: bytes) -> bytes:
        if id(source) in self._open_ids:
            raise UnserializableError("circular reference: the value contains itself")
        self._open_ids.add(id(source))
        self._frames.append(_Frame(source, entries, close))
        return opening

    def _plain(self, value: object) -> object:
        for _ in range(_MOST_STEPS):
            if isinstance(value, Enum):
                value = value.value
            elif isinstance(value, str) and value in self._parking.values:
                value = self._parking.values[value]
            elif isinstance(value, _SIMPLE) or arrays.is_numbers(value) or tensors.is_splittable(value):
                return value
            elif models.is_model(value):
                value = models.simplify(value, self._parking)
            else:
                value = _native(value) or simplify(value)
        raise UnserializableError(f"{type(value).__qualname__} never becomes a plain value")

    def _members(self, members: dict[Any, object]) -> Iterator[_Entry]:
        rest = iter(members.items())
        while run := dict(islice(rest, _RUN)):
            text = self._at_once(run)
            if text is None:
                yield from (_Entry(key, self._label(key) + b":", value) for key, value in run.items())
            else:
                yield _Entry(next(iter(run)), b"", orjson.Fragment(text[1:-1]))

    def _items(self, items: list[object] | tuple[object, ...]) -> Iterator[_Entry]:
        for start in range(0, len(items), _RUN):
            run = items[start : start + _RUN]
            text = self._at_once(run)
            if text is None:
                yield from (_Entry(index, b"", item) for index, item in enumerate(run, start))
            else:
                yield _Entry(start, b"", orjson.Fragment(text[1:-1]))

    def _rows(self, array: Any) -> Iterator[_Entry]:
        """A large array in slices, so that no single call holds the interpreter for long."""
        rows = max(1, tensors.PIECE * len(array) // tensors.count(array))
        for start in range(0, len(array), rows):
            part = self._plain(array[start : start + rows]) if rows > 1 else None
            if arrays.is_numbers(part) and self._untouched(part):
                yield _Entry(start, b"", orjson.Fragment(self._rounded(part)[1:-1]))
            else:
                yield from (
                    _Entry(index, b"", array[index]) for index in range(start, min(start + rows, len(array)))
                )

    def _at_once(self, run: dict[Any, object] | list[object] | tuple[object, ...]) -> bytes | None:
        """The text of a run in one call, when that is quick and no policy has a say in it."""
        if len(run) == 1 or self._parking.values or (self._free and weigh(run) > _QUICK_BYTES):
            return None
        if not self._free and not set(map(type, run.values() if isinstance(run, dict) else run)) <= _FLAT:
            return None
        try:
            return fast.dumps(run)
        except (orjson.JSONEncodeError, UnserializableError):
            return None

    def _label(self, key: object) -> bytes:
        plain: Any = self._plain(key)
        if isinstance(plain, (list, tuple, dict)) or getattr(plain, "ndim", 0) > 0:
            kind = type(key).__qualname__
            raise UnserializableError(f"a dict key of type {kind}: JSON keys are strings, use str() on it")
        if isinstance(plain, float) or getattr(getattr(plain, "dtype", None), "kind", "") == "f":
            return orjson.dumps(_NON_FINITE.get(str(plain), str(plain)))
        text = arrays.dumps(plain) if arrays.is_numbers(plain) else self._scalar(plain)
        return text if text.startswith(b'"') else b'"%s"' % text

    def _scalar(self, value: object) -> bytes:
        if isinstance(value, float):
            return self._float(float(value))
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            return _spelled_out(value, error)

    def _float(self, value: float) -> bytes:
        if math.isfinite(value):
            return orjson.dumps(value if self._digits is None else rounding.round_float(value, self._digits))
        return self._not_finite(value)

    def _not_finite(self, value: float) -> bytes:
        name = _NON_FINITE[str(value)]
        if self._nan == "error":
            raise UnserializableError(
                f"{name} is not a JSON number: return None, or set ASGI_MLPERF_JSON__NAN"
            )
        return b"null" if self._nan == "null" else orjson.dumps(name)

    def _numbers(self, source: object, numbers: Any) -> bytes:
        if self._untouched(numbers):
            return self._rounded(numbers)
        if numbers.ndim == 0:
            return self._not_finite(float(numbers))
        return self._push(source, self._items(list(numbers)), b"[", b"]")

    def _untouched(self, numbers: Any) -> bool:
        """Whether the NaN policy has no say in ``numbers``."""
        return numbers.dtype.kind != "f" or self._nan == "null" or rounding.is_finite(numbers)

    def _rounded(self, numbers: Any) -> bytes:
        if numbers.dtype.kind != "f" or self._digits is None:
            return arrays.dumps(numbers)
        return arrays.dumps(rounding.round_array(numbers, self._digits))

    def _path(self) -> str:
        return "$" + "".join(_step(frame.key) for frame in self._frames if frame.key is not None)


_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _native(value: object) -> orjson.Fragment | None:
    if type(value) not in _NATIVE:
        return None
    try:
        return orjson.Fragment(orjson.dumps(value))
    except orjson.JSONEncodeError:
        return None


def _spelled_out(value: object, error: Exception) -> bytes:
    """What stdlib ``json`` can say and orjson cannot: lone surrogates, and integers beyond 64 bits."""
    try:
        return json.dumps(value).encode("ascii")
    except ValueError as refusal:
        raise UnserializableError(str(refusal)) from error


def _step(key: object) -> str:
    if isinstance(key, str):
        return f".{key}" if key.isidentifier() else f"[{key!r}]"
    return f"[{key!r}]"
