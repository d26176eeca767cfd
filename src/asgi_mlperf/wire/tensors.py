"""The one place that knows what an array is, and how its numbers reach orjson unharmed.

orjson's own NumPy support is trusted only with what it says right: C-contiguous, native-endian booleans,
integers and floats of at most 64 bits. Given ``datetime64``, version 3.13 prints ``NaT`` as a date in 1677,
drops nanoseconds, and for units such as ``25s`` aborts the process. Everything else is prepared here.

NumPy and PyTorch are never imported for their own sake: a value can only come from a library that is loaded.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import orjson

from asgi_mlperf.exceptions import UnserializableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

_PROTOCOLS = ("__array__", "__array_interface__", "__dlpack__")
_NULLABLE = {"pandas": "tolist", "polars": "to_list", "pyarrow": "to_pylist"}
_FRAMES = {"pandas": "columns", "polars": "columns", "pyarrow": "column_names"}
_WIDEST = 8
_FOREIGN = 2
"""What NumPy's ``dtype.isbuiltin`` says of dtypes that another library registered."""
_SECONDS = {"W": 604_800, "D": 86_400, "h": 3_600, "m": 60, "s": 1}
_FRACTIONS = {"ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}


def is_numbers(value: object) -> bool:
    """Whether ``value`` is a NumPy array or scalar that :func:`dumps` writes right as it is."""
    np = sys.modules.get("numpy")
    return np is not None and isinstance(value, (np.ndarray, np.generic)) and _ready(value)


def dumps(numbers: object) -> bytes:
    """The JSON text of what :func:`is_numbers` accepts; NaN and infinities become ``null``."""
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def is_array(value: object) -> bool:
    """Whether ``value`` is an array, a tensor, an array scalar, or speaks one of the array protocols."""
    return not isinstance(value, type) and (
        _from("numpy", "generic", value) or any(hasattr(value, name) for name in _PROTOCOLS)
    )


def simplify(value: object) -> object:
    """One step from an array to JSON: numbers that are ready, or a plain value that holds simpler ones.

    Raises:
        UnserializableError: complex, sparse, meta or otherwise unreadable arrays; says what to do instead.
    """
    frame = _columns(value)
    if frame is not None:
        return frame
    nullable = _NULLABLE.get(_library(value))
    if nullable is not None and _has_nulls(value):
        return getattr(value, nullable)()
    return _simplify(to_numpy(value))


def to_numpy(value: Any) -> NDArray[Any]:
    """The values of any array as a NumPy array, without a copy where the layout allows.

    Devices are copied from, gradients dropped, lazy conjugates and negations resolved; bfloat16 and float8,
    which NumPy lacks, come back as float32, which holds them exactly.

    Raises:
        UnserializableError: sparse, meta, nested or otherwise unreadable arrays.
    """
    try:
        if _from("torch", "Tensor", value):
            return _from_torch(value)
        return _known(_by_protocol(value))
    except UnserializableError:
        raise
    except Exception as error:
        name = type(value).__qualname__
        raise UnserializableError(
            f"{name} cannot be read as an array ({error}): convert it to NumPy"
        ) from error


def _from(library: str, name: str, value: object) -> bool:
    module = sys.modules.get(library)
    return module is not None and isinstance(value, getattr(module, name, ()))


def _library(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def _columns(value: Any) -> dict[str, object] | None:
    names = getattr(value, _FRAMES.get(_library(value), ""), None)
    return None if names is None else {name: value[name] for name in names}


def _has_nulls(value: Any) -> bool:
    if getattr(value, "hasnans", False):
        return not _from("numpy", "dtype", value.dtype)
    count = getattr(value, "null_count", 0)
    return bool(count() if callable(count) else count)


def _by_protocol(value: Any) -> Any:
    np = importlib.import_module("numpy")
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asanyarray(value) if _simple(value) else np.from_dlpack(value, device="cpu")
    except (TypeError, RuntimeError, ValueError):
        if not hasattr(value, "__dlpack__"):
            raise
        return np.from_dlpack(value, device="cpu")


def _simple(value: object) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _from_torch(tensor: torch.Tensor) -> NDArray[Any]:
    if str(tensor.layout) != "torch.strided" or tensor.is_nested:
        fix = "call .unbind() and return the parts" if tensor.is_nested else "call .to_dense()"
        raise UnserializableError(f"{str(tensor.layout).removeprefix('torch.')} tensor: {fix} first")
    if tensor.device.type == "meta":
        raise UnserializableError("meta tensor has no values: materialise it first")
    plain = tensor.detach()
    plain = plain.resolve_conj().resolve_neg().cpu()
    small = plain.is_floating_point() and str(plain.dtype).startswith(("torch.bfloat", "torch.float8"))
    array: NDArray[Any] = (plain.float() if small else plain).numpy()
    return array


def _known(array: NDArray[Any]) -> NDArray[Any]:
    """Turn the dtypes that other libraries register (``ml_dtypes``) into NumPy's own."""
    if array.dtype.isbuiltin != _FOREIGN:
        return array
    name = array.dtype.name
    return array.astype("u1" if name.startswith("uint") else "i1" if name.startswith("int") else "f4")


def _ready(array: np.generic | NDArray[Any]) -> bool:
    dtype = array.dtype
    if (
        dtype.kind not in "biuf"
        or dtype.itemsize > _WIDEST
        or dtype.isbuiltin == _FOREIGN
        or not dtype.isnative
    ):
        return False
    np = sys.modules["numpy"]
    if isinstance(array, np.generic):
        return True
    return type(array) is np.ndarray and array.ndim > 0 and bool(array.flags.c_contiguous)


def _simplify(array: NDArray[Any]) -> object:
    np = sys.modules["numpy"]
    if isinstance(array, np.ma.MaskedArray):
        return None if array is np.ma.masked else _one_by_one(array)
    convert = _BY_KIND.get(array.dtype.kind)
    if convert is None:
        raise UnserializableError(f"{array.dtype} array: NumPy has no plain values for it, convert it first")
    return convert(np.asarray(array))


def _numbers(array: NDArray[Any]) -> object:
    if array.dtype.itemsize > _WIDEST:
        return _long_doubles(array)
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    return native[()] if native.ndim == 0 else native


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
