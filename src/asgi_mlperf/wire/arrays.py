"""NumPy arrays of every dtype as what orjson writes right, or as plain values that hold simpler ones.

orjson's own NumPy support is trusted only with what it says right: C-contiguous, native-endian booleans,
integers and floats of at most 64 bits. Given ``datetime64``, version 3.13 prints ``NaT`` as a date in 1677,
drops nanoseconds, and for units such as ``25s`` aborts the process. Everything else is prepared here.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import orjson

from asgi_mlperf.exceptions import UnserializableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

_WIDEST = 8
FOREIGN = 2
"""What NumPy's ``dtype.isbuiltin`` says of dtypes that another library registered."""
_SECONDS = {"W": 604_800, "D": 86_400, "h": 3_600, "m": 60, "s": 1}
_FRACTIONS = {"ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}


def is_masked(value: object) -> bool:
    """Whether ``value`` is a masked array. NumPy imports those only when they are used first."""
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(value, getattr(ma, "MaskedArray", ()))


def is_numbers(value: Any) -> bool:
    """Whether ``value`` is a NumPy array or scalar that :func:`dumps` writes right as it is."""
    np = sys.modules.get("numpy")
    if np is None:
        return False
    if type(value) is np.ndarray and id(value.dtype) in _known_dtypes():
        return bool(value.ndim and value.flags.c_contiguous)
    return isinstance(value, (np.ndarray, np.generic)) and _ready(value)


def dumps(numbers: object) -> bytes:
    """The JSON text of what :func:`is_numbers` accepts; NaN and infinities become ``null``."""
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def plain(array: NDArray[Any]) -> object:
    """One step from ``array`` to JSON: numbers that are ready, or a plain value that holds simpler ones.

    Raises:
        UnserializableError: complex numbers, or a dtype that NumPy has no plain values for.
    """
    if is_masked(array):
        return None if array is sys.modules["numpy.ma"].masked else _one_by_one(array)
    convert = _BY_KIND.get(array.dtype.kind)
    if convert is None:
        raise UnserializableError(f"{array.dtype} array: NumPy has no plain values for it, convert it first")
    return convert(sys.modules["numpy"].asarray(array))


def _ready(array: np.generic | NDArray[Any]) -> bool:
    dtype = array.dtype
    if (
        dtype.kind not in "biuf"
        or dtype.itemsize > _WIDEST
        or dtype.isbuiltin == FOREIGN
        or not dtype.isnative
    ):
        return False
    np = sys.modules["numpy"]
    if isinstance(array, np.generic):
        return type(array) in _known_scalars()
    return type(array) is np.ndarray and array.ndim > 0 and bool(array.flags.c_contiguous)


@cache
def _known_dtypes() -> dict[int, np.dtype[Any]]:
    """NumPy's own instances of the dtypes that orjson writes right, by id: most arrays have one of them."""
    plain = import_module("asgi_mlperf.wire.dtypes").PLAIN  # only now, as it needs NumPy
    return {id(dtype): dtype for dtype in plain}


@cache
def _known_scalars() -> frozenset[type]:
    """The types of scalars that orjson knows: of C's integers of the same width one."""
    named = import_module("asgi_mlperf.wire.dtypes").NAMED  # only now, as it needs NumPy
    return frozenset(dtype.type for dtype in named.values())


def _numbers(array: NDArray[Any]) -> object:
    if array.dtype.itemsize > _WIDEST:
        return _long_doubles(array)
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    if native.ndim:
        return native
    scalar: type = sys.modules["numpy"].dtype(native.dtype.str).type
    return scalar(native[()])


def _long_doubles(array: NDArray[Any]) -> object:
    if array.ndim:
        return list(array)
    number = array[()]
    finite = sys.modules["numpy"].isfinite(number)
    return orjson.Fragment(str(number)) if finite else float(number)


def _one_by_one(array: NDArray[Any]) -> object:
    if array.dtype.names is not None and array.ndim < 2:  # noqa: PLR2004 - a record, or a list of records
        fields = [array[name] for name in array.dtype.names]
        if array.ndim == 0:
            return dict(zip(array.dtype.names, fields, strict=True))
        return [dict(zip(array.dtype.names, record, strict=True)) for record in zip(*fields, strict=True)]
    return list(array) if array.ndim else array[()]


def _structures(array: NDArray[Any]) -> object:
    if array.dtype.names is None:
        return [row.tobytes() if array.ndim == 1 else row for row in array] if array.ndim else array.tobytes()
    return _one_by_one(array)


def _complex(array: NDArray[Any]) -> object:
    raise UnserializableError(f"{array.dtype} array: JSON has no complex numbers, return .real and .imag")


def _moments(array: NDArray[Any]) -> object:
    np = sys.modules["numpy"]
    texts = np.datetime_as_string(array).astype(object)
    return np.where(np.isnat(array), None, texts).tolist()


def _durations(array: NDArray[Any]) -> object:
    """Seconds, as FastAPI writes a ``timedelta``."""
    np = sys.modules["numpy"]
    unit, count = np.datetime_data(array.dtype)
    if unit in _SECONDS:
        seconds = array.astype("i8") * float(count * _SECONDS[unit])
    elif unit in _FRACTIONS:
        seconds = array.astype("i8") * float(count) / _FRACTIONS[unit]
    elif np.isnat(array).all():
        seconds = np.zeros(array.shape)
    else:
        raise UnserializableError(f"{array.dtype} array: {unit} has no fixed length, convert it to seconds")
    return np.where(np.isnat(array), None, seconds.astype(object)).tolist()


def _as_list(array: NDArray[Any]) -> object:
    return array.tolist()


_BY_KIND: dict[str, Callable[[NDArray[Any]], object]] = {
    **dict.fromkeys("biuf", _numbers),
    **dict.fromkeys("OSTU", _as_list),
    "c": _complex,
    "m": _durations,
    "M": _moments,
    "V": _structures,
}
