"""The last gate before a handler: dtype, shape and finiteness of an array that came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from asgi_mlperf.exceptions import BodyRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from asgi_mlperf.wire.shapes import Shape

    Where = Callable[[int], tuple[str | int, ...]]
    """Says where in a body the value with this number stands."""

_UNPROCESSABLE = 422


def checked(
    array: NDArray[Any], dtype: np.dtype[Any], shape: Shape, *, finite: bool, loc: tuple[str, ...] = ()
) -> NDArray[Any]:
    """``array``, which stands at ``loc``, as :func:`as_declared` has it.

    Raises:
        BodyRefused: another shape, or as :func:`as_declared` does.
    """
    if not shape.fits(array.shape):
        raise refused("shape", f"Input should have shape ({shape.text}), not {list(array.shape)}", loc)
    return as_declared(array, dtype, finite=finite, loc=loc)


def as_declared(
    array: NDArray[Any], dtype: np.dtype[Any], *, finite: bool, loc: tuple[str, ...] = ()
) -> NDArray[Any]:
    """``array``, which stands at ``loc``, as ``dtype``, aligned, writable and in C order.

    Not copied where it is all that already.

    Raises:
        BodyRefused: another kind of dtype, a value that ``dtype`` cannot hold, or, if ``finite``, NaN or an
            infinity; says where.
    """
    if array.dtype != dtype:
        if not _may_become(array.dtype, dtype):
            raise refused("dtype", f"Input should be {dtype}, not {array.dtype}", loc)
        array = cast(array, dtype, _places(array, loc))
    if finite and dtype.kind == "f" and not _is_finite(array):
        _refuse_first(
            ~np.isfinite(array), "finite_number", "Input should be a finite number", _places(array, loc)
        )
    return array if array.flags.carray else np.require(array, requirements=["C", "A", "W"])


def cast(array: NDArray[Any], dtype: np.dtype[Any], where: Where) -> NDArray[Any]:
    """``array`` as ``dtype``, each number as near as ``dtype`` comes to it.

    Raises:
        BodyRefused: a value that ``dtype`` cannot hold; says ``where``.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(dtype, copy=False)
    if dtype.kind in "iu":
        _refuse_first(made != array, "out_of_range", f"Input should fit in {dtype}", where)
    elif dtype.kind == "f" and not _is_finite(made):
        _refuse_first(
            np.isinf(made) & np.isfinite(array), "out_of_range", f"Input should fit in {dtype}", where
        )
    return made


def refused(kind: str, message: str, loc: tuple[str | int, ...] = ()) -> BodyRefused:
    """The error that says so, as a 422."""
    return BodyRefused(_UNPROCESSABLE, kind, message, loc)


def _is_finite(array: NDArray[Any]) -> bool:
    return bool(np.count_nonzero(np.isfinite(array)) == array.size)


def _places(array: NDArray[Any], loc: tuple[str, ...]) -> Where:
    return lambda at: (*loc, *map(int, np.unravel_index(at, array.shape)))


def _refuse_first(wrong: NDArray[Any], kind: str, message: str, where: Where) -> None:
    if wrong.any():
        raise refused(kind, message, where(int(wrong.argmax())))


def _may_become(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Numbers may change their width, and integers become floats; the values decide whether they fit."""
    if source.kind in "iu":
        return target.kind in "iuf"
    return source.kind == target.kind and source.kind in "bf"
