"""JSON text straight into an array: one orjson call, no object per element that outlives it."""

from __future__ import annotations

import re
import struct
import time
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from asgi_mlperf.wire.casting import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from asgi_mlperf.wire.shapes import Shape

_NOT_NUMBERS = (b'"', b"{", b"t", b"f", b"n")
_MOST_AXES = 32
_SHORT_ROW = 16
_LARGE_BYTES = 1_000_000
_PIECE_BYTES = 262_144
_BREATH_S = 0.0002
_OPENING = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*(?=[-\d\[])")
_EXACT_FLOAT = 2**53
_KINDS: dict[str, frozenset[type]] = {
    "f": frozenset({float, int}),
    "i": frozenset({float, int}),
    "u": frozenset({float, int}),
    "b": frozenset({bool}),
}
_NAMES = {"f": "a number", "i": "an integer", "u": "an integer", "b": "a boolean"}


def loads(data: bytes | bytearray) -> Any:
    """The value of a JSON text.

    Raises:
        BodyRefused: not JSON, or nested deeper than orjson reads.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise refused("json_invalid", f"JSON decode error: {error.msg}", (error.pos,)) from None


def read_array(data: bytes | bytearray, dtype: np.dtype[Any], shape: Shape, *, finite: bool) -> NDArray[Any]:
    """The nested lists in ``data`` as an array of ``dtype``'s kind; ``null`` is NaN unless ``finite``.

    Raises:
        BodyRefused: not JSON, ragged, of another depth, or not numbers; says where.
    """
    if dtype.kind == "f" and len(data) > _LARGE_BYTES:
        with suppress(ValueError, TypeError, OverflowError, struct.error):
            return _in_pieces(data)
    rows, sizes = _flatten(loads(data), shape)
    if dtype.kind == "f" and _numbers_only(data):
        with suppress(struct.error, OverflowError):
            return _packed(rows).reshape(sizes)
    return to_array(_leaves(rows), dtype, sizes, finite=finite).reshape(sizes)


def _in_pieces(data: bytes | bytearray) -> NDArray[Any]:
    """A large list of numbers, or of rows of them, with pauses, so that other threads get their turn.

    Raises:
        ValueError, TypeError, OverflowError, struct.error: anything else.
    """
    opening = _OPENING.match(data)
    if opening is None:
        raise TypeError
    at, end = opening.end(), data.rindex(b"]")
    separator = b"]," if data[at : at + 1] == b"[" else b","
    packed: list[NDArray[Any]] = []
    while at < end:
        cut = data.find(separator, at + _PIECE_BYTES, end)
        stop = end if cut < 0 else cut + len(separator) - 1
        packed.append(_piece(data[at:stop], rows=separator != b","))
        at = stop + 1
        time.sleep(_BREATH_S)
    if data[end + 1 :].strip(b" \t\r\n"):
        raise TypeError
    return np.concatenate(packed)


def _piece(text: bytes | bytearray, *, rows: bool) -> NDArray[Any]:
    values = orjson.loads(b"[" + text + b"]")
    if not values or not _numbers_only(text):
        raise TypeError
    if not rows:
        return _packed([values])
    sizes = (len(values), len(values[0]))
    if set(map(len, values)) != {sizes[1]}:
        raise TypeError
    return _packed(values).reshape(sizes)


def _numbers_only(data: bytes | bytearray) -> bool:
    return not any(map(data.__contains__, _NOT_NUMBERS))


def to_array(
    leaves: Sequence[Any],
    dtype: np.dtype[Any],
    sizes: tuple[int, ...],
    *,
    finite: bool,
    loc: tuple[str, ...] = (),
) -> NDArray[Any]:
    """A flat list of JSON values as a flat array of ``dtype``'s kind.

    Raises:
        BodyRefused: a value of another kind; says where in an array of ``sizes`` it stands, below ``loc``.
    """
    kinds = set(map(type, leaves))
    if type(None) in kinds and dtype.kind == "f" and not finite:
        leaves = [np.nan if leaf is None else leaf for leaf in leaves]
        kinds.discard(type(None))
    wrong = kinds - _KINDS[dtype.kind]
    if wrong:
        at = next(index for index, leaf in enumerate(leaves) if type(leaf) in wrong)
        raise refused("type", f"Input should be {_NAMES[dtype.kind]}", (*loc, *_unravel(at, sizes)))
    if dtype.kind == "f":
        return np.fromiter(leaves, "f8", len(leaves))
    return np.array(leaves, dtype="?") if dtype.kind == "b" else _integers(leaves, float in kinds, sizes, loc)


def _packed(rows: list[list[float]]) -> NDArray[Any]:
    """Rows of equal length as float64; ``struct`` is the fastest reader of Python floats there is."""
    if len(rows[0]) < _SHORT_ROW:
        rows = [_leaves(rows)]
    pack = struct.Struct(f"{len(rows[0])}d").pack
    return np.frombuffer(b"".join([pack(*row) for row in rows]), "f8")


def _integers(
    leaves: Sequence[float], with_floats: bool, sizes: tuple[int, ...], loc: tuple[str, ...]
) -> NDArray[Any]:
    if with_floats:
        for at, leaf in enumerate(leaves):
            if type(leaf) is float and not (leaf.is_integer() and abs(leaf) <= _EXACT_FLOAT):
                raise refused("int_from_float", "Input should be an integer", (*loc, *_unravel(at, sizes)))
        leaves = [int(leaf) for leaf in leaves]
    if max(leaves, default=0) > np.iinfo("i8").max and min(leaves) < 0:
        raise refused("out_of_range", "Input should fit in 64 bits", loc)
    return np.array(leaves, dtype="u8" if max(leaves, default=0) > np.iinfo("i8").max else "i8")


def _flatten(nested: Any, shape: Shape) -> tuple[list[list[Any]], tuple[int, ...]]:
    """The innermost of ``nested`` lists in order, at least one, and the sizes of all axes."""
    rows: list[Any] = [nested]
    sizes: tuple[int, ...] = ()
    while type(rows[0]) is list:
        lengths = set(map(len, rows)) if set(map(type, rows)) == {list} else set()
        if len(lengths) != 1:
            raise _ragged(rows, sizes)
        sizes = (*sizes, len(rows[0]))
        if len(sizes) > _MOST_AXES:
            raise refused("shape", "Input is nested too deeply for an array")
        if not rows[0] or type(rows[0][0]) is not list:
            break
        rows = _leaves(rows)
    if 0 in sizes and "..." not in shape.axes:
        sizes += tuple(axis if isinstance(axis, int) else 0 for axis in shape.axes[len(sizes) :])
    if not shape.fits_depth(len(sizes)):
        raise refused("shape", f"Input should have shape ({shape.text}), not {list(sizes)}")
    return (rows if sizes else [rows]), sizes


def _leaves(rows: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(rows))


def _ragged(rows: list[Any], sizes: tuple[int, ...]) -> Exception:
    length = len(rows[0])
    at = next(i for i, row in enumerate(rows) if type(row) is not list or len(row) != length)
    return refused("ragged", f"Input should be a list of {length} like those before it", _unravel(at, sizes))


def _unravel(at: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(at, sizes))) if sizes else ()
