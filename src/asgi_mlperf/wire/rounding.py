"""Floats cut to so many significant digits: shorter bodies, and small probabilities survive."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXACT_POWERS = 22
"""Ten to this power is the largest that a float64 holds exactly."""


def is_finite(numbers: Any) -> bool:
    """Whether no number of a float array is NaN or infinite."""
    return bool(sys.modules["numpy"].isfinite(numbers).all())


def round_float(number: float, digits: int) -> float:
    """The float nearest to ``number`` written with ``digits`` significant digits, unless that is infinite."""
    rounded = float(f"{number:.{digits}g}")
    return rounded if math.isfinite(rounded) else number


def round_array(numbers: Any, digits: int) -> Any:
    """The ``numbers`` with ``digits`` significant digits each, as float64; NaN and infinities as they are.

    Dtypes that hold fewer digits than that come back as they are. Halves may round to either side.
    """
    np = sys.modules["numpy"]
    if digits > np.finfo(numbers.dtype).precision:
        return numbers
    exact = np.asarray(numbers, dtype="f8")
    flat = exact.ravel()
    shift = digits - 1 - _exponents(flat)
    scale = 10.0 ** np.arange(_EXACT_POWERS + 1)
    scale = scale[np.minimum(np.abs(shift), _EXACT_POWERS)]
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.where(shift >= 0, np.rint(flat * scale) / scale, np.rint(flat / scale) * scale)
    extreme = np.abs(shift) > _EXACT_POWERS
    rounded[extreme] = [round_float(number, digits) for number in flat[extreme].tolist()]
    return rounded.reshape(exact.shape) if exact.ndim else rounded[0]


def _exponents(flat: NDArray[Any]) -> NDArray[Any]:
    np = sys.modules["numpy"]
    magnitudes = np.abs(flat)
    magnitudes[(magnitudes == 0) | ~np.isfinite(flat)] = 1.0
    exponents: NDArray[Any] = np.floor(np.log10(magnitudes)).astype("i8")
    return exponents
