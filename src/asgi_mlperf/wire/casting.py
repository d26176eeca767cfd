"""The last gate before a handler: dtype, shape and finiteness of an array that came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from asgi_mlperf.exceptions import BodyRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asgi_mlperf.wire.shapes import Shape

_UNPROCESSABLE = 422


def checked(
    array: NDArray[Any], dtype: np.dtype[Any], shape: Shape, *, finite: bool, loc: tuple[str, ...] = ()
) -> NDArray[Any]:
    """``array``, which stands at ``loc``, as ``dtype``, aligned, writable and in C order.

    Not copied where it is all that already.

    Raises:
        BodyRefused: another kind of dtype, a value that ``dtype`` cannot hold, another shape, or, if
            ``finite``, NaN or an infinity; says where.
    """
    if not shape.fits(array.shape):
        raise refused("shape", f"Input should have shape ({shape.text}), not {list(array.shape)}", loc)
    cast = _cast(array, dtype, loc)
    if dtype.kind == "f" and not np.isfinite(cast).all():
        first_wrong(np.isinf(cast) & np.isfinite(array), "out_of_range", f"Input should fit in {dtype}", loc)
        if finite:
            first_wrong(~np.isfinite(cast), "finite_number", "Input should be a finite number", loc)
    return np.require(cast, requirements=["C", "A", "W"])


def first_wrong(wrong: NDArray[Any], kind: str, message: str, loc: tuple[str, ...]) -> None:
    """Refuse the body at the first ``True`` of ``wrong``, if there is one."""
    if wrong.any():
        indices = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise refused(kind, message, (*loc, *map(int, indices)))


def refused(kind: str, message: str, loc: tuple[str | int, ...] = ()) -> BodyRefused:
    """The error that says so, as a 422."""
    return BodyRefused(_UNPROCESSABLE, kind, message, loc)


def _cast(array: NDArray[Any], dtype: np.dtype[Any], loc: tuple[str, ...]) -> NDArray[Any]:
    if array.dtype == dtype:
        return array
    if not _may_become(array.dtype, dtype):
        raise refused("dtype", f"Input should be {dtype}, not {array.dtype}", loc)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    if dtype.kind in "iu":
        first_wrong(cast != array, "out_of_range", f"Input should fit in {dtype}", loc)
    return cast


def _may_become(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Numbers may change their width, and integers become floats; the values decide whether they fit."""
    if source.kind in "iu":
        return target.kind in "iuf"
    return source.kind == target.kind and source.kind in "bf"
