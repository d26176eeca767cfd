"""Flat lists of what JSON holds as flat arrays of numbers or booleans."""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from asgi_mlperf.wire.casting import cast, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from asgi_mlperf.wire.casting import Where
    from asgi_mlperf.wire.pacing import Pace

_SHORT_ROW = 16
_EXACT_FLOAT = 2**53
_LARGEST = 2**63 - 1
_FLOAT64 = np.dtype("<f8")
PACKED = {np.dtype("<f4"): "f", np.dtype("<f8"): "d"}
"""What ``struct`` calls the dtypes that it packs; its native codes would not notice an overflow."""
_KINDS: dict[str, frozenset[type]] = {
    "f": frozenset({float, int}),
    "i": frozenset({float, int}),
    "u": frozenset({float, int}),
    "b": frozenset({bool}),
}
NAMES = {"f": "a number", "i": "an integer", "u": "an integer", "b": "a boolean"}


class Parts:
    """A flat array of which one part comes after the other."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        """Begin with an empty one."""
        self.size = 0
        self._dtype = dtype
        self._parts: deque[NDArray[Any]] = deque()

    def add(self, part: NDArray[Any]) -> None:
        """Take the next part."""
        self.size += part.size
        self._parts.append(part)

    def joined(self, pace: Pace) -> NDArray[Any]:
        """The whole array, once; the parts are let go of one by one."""
        if len(self._parts) == 1:
            return self._parts[0]
        joined = np.empty(self.size, self._dtype)
        at = 0
        while self._parts:
            part = self._parts.popleft()
            joined[at : at + part.size] = part
            at += part.size
            pace.breathe()
        return joined


def flatten(rows: list[list[Any]]) -> list[Any]:
    """The members of all ``rows`` in one list."""
    return rows[0] if len(rows) == 1 else list(chain.from_iterable(rows))


def rows_to_array(
    rows: list[list[Any]], dtype: np.dtype[Any], where: Where, *, finite: bool, is_plain: bool
) -> NDArray[Any]:
    """What :func:`to_array` makes of all ``rows``; faster if they are ``is_plain``: hold no booleans."""
    if dtype.kind == "f" and is_plain:
        with suppress(struct.error, OverflowError):
            code = PACKED.get(dtype)
            return _packed(rows, code, dtype) if code else cast(_packed(rows, "d", _FLOAT64), dtype, where)
    return to_array(flatten(rows), dtype, where, finite=finite)


def to_array(leaves: Sequence[Any], dtype: np.dtype[Any], where: Where, *, finite: bool) -> NDArray[Any]:
    """A flat list of JSON values as a flat array of ``dtype``; ``null`` is NaN unless ``finite``.

    Raises:
        BodyRefused: a value of another kind, or one that ``dtype`` cannot hold; says ``where``.
    """
    kinds = set(map(type, leaves))
    if type(None) in kinds and dtype.kind == "f" and not finite:
        leaves = [np.nan if leaf is None else leaf for leaf in leaves]
        kinds.discard(type(None))
    wrong = kinds - _KINDS[dtype.kind]
    if wrong:
        at = next(index for index, leaf in enumerate(leaves) if type(leaf) in wrong)
        raise refused("type", f"Input should be {NAMES[dtype.kind]}", where(at))
    if dtype.kind == "b":
        return np.array(leaves, dtype="?")
    if dtype.kind == "f":
        return cast(np.fromiter(leaves, "f8", len(leaves)), dtype, where)
    return cast(_integers(leaves, dtype, where, with_floats=float in kinds), dtype, where)


def packed(row: list[float], code: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``row`` in writable memory, as ``dtype``, of which ``code`` is the name in :data:`PACKED`.

    Raises:
        OverflowError: a number that ``dtype`` cannot hold.
        struct.error: something that is no number.
    """
    return np.frombuffer(bytearray(struct.pack(f"<{len(row)}{code}", *row)), dtype)


def _packed(rows: list[list[float]], code: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The same for any number of rows, one after the other."""
    if len(rows) > 1 and (len(rows[0]) < _SHORT_ROW or len(set(map(len, rows))) > 1):
        rows = [flatten(rows)]
    if len(rows) == 1:
        return packed(rows[0], code, dtype)
    pack = struct.Struct(f"<{len(rows[0])}{code}").pack
    return np.frombuffer(bytearray().join([pack(*row) for row in rows]), dtype)


def _integers(
    leaves: Sequence[float], dtype: np.dtype[Any], where: Where, *, with_floats: bool
) -> NDArray[Any]:
    if with_floats:
        for at, leaf in enumerate(leaves):
            if type(leaf) is float and not (leaf.is_integer() and abs(leaf) <= _EXACT_FLOAT):
                raise refused("int_from_float", "Input should be an integer", where(at))
        leaves = [int(leaf) for leaf in leaves]
    least, largest = min(leaves, default=0), max(leaves, default=0)
    if largest > _LARGEST and least < 0:
        wrong = least if dtype.kind == "u" else largest
        raise refused("out_of_range", f"Input should fit in {dtype}", where(leaves.index(wrong)))
    return np.array(leaves, dtype="u8" if largest > _LARGEST else "i8")
