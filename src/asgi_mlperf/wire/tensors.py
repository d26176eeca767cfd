"""The one place that knows what an array is, whichever library it comes from.

NumPy and PyTorch are never imported for their own sake: a value can only come from a library that is loaded.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import arrays

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

PIECE = 16_384
"""Values of an array that are written in one call: about half a millisecond."""

_PROTOCOLS = ("__array__", "__array_interface__", "__dlpack__")
_NULLABLE = {"pandas": "tolist", "polars": "to_list", "pyarrow": "to_pylist"}
_FRAMES = {"pandas": "columns", "polars": "columns", "pyarrow": "column_names"}


def count(array: Any) -> int:
    """How many values an array or tensor holds."""
    return int(array.numel() if hasattr(array, "numel") else array.size)


def is_splittable(value: Any) -> bool:
    """Whether ``value`` is an array or tensor of more than :data:`PIECE` values that can be cut into rows."""
    np = sys.modules.get("numpy")
    if np is not None and (type(value) is np.ndarray or arrays.is_masked(value)):
        return bool(value.ndim and value.size > PIECE)
    return (
        _from("torch", "Tensor", value) and _is_readable(value) and bool(value.ndim) and value.numel() > PIECE
    )


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
    if nullable is not None and (_has_nulls(value) or "Struct" in str(getattr(value, "dtype", ""))):
        return getattr(value, nullable)()
    return arrays.plain(to_numpy(value))


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
    if names is None:
        return None
    if len(set(names)) < len(names):
        raise UnserializableError("columns of the same name: JSON has one of each, rename them first")
    return {name: value[name] for name in names}


def _has_nulls(value: Any) -> bool:
    try:
        if getattr(value, "hasnans", False):
            return not _from("numpy", "dtype", value.dtype)
    except NotImplementedError:
        return True  # an index of several levels, which has no array of its own
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
    if not _is_readable(tensor):
        raise UnserializableError(_unreadable(tensor))
    plain = tensor.detach()
    plain = plain.resolve_conj().resolve_neg().cpu()
    if str(plain.dtype).startswith(("torch.bfloat16", "torch.float8")):
        return _looked_up(plain)
    array: NDArray[Any] = plain.numpy()
    return array


def _looked_up(tensor: torch.Tensor) -> NDArray[Any]:
    """float32 of dtypes that NumPy lacks. PyTorch's own conversion wakes a thread pool, and waits for it."""
    torch = sys.modules["torch"]
    codes = torch.int16 if tensor.element_size() > 1 else torch.uint8
    array: NDArray[Any] = _float32_table(tensor.dtype, codes)[
        tensor.view(codes).numpy().view(f"u{tensor.element_size()}")
    ]
    return array


@cache
def _float32_table(dtype: torch.dtype, codes: torch.dtype) -> NDArray[Any]:
    """Every value of ``dtype``, by its bits."""
    torch = sys.modules["torch"]
    bits = torch.arange(65_536 if codes == torch.int16 else 256, dtype=torch.int32).to(codes)
    table: NDArray[Any] = bits.view(dtype).float().numpy()
    return table


def _is_readable(tensor: torch.Tensor) -> bool:
    return str(tensor.layout) == "torch.strided" and not tensor.is_nested and tensor.device.type != "meta"


def _unreadable(tensor: torch.Tensor) -> str:
    if tensor.device.type == "meta":
        return "meta tensor has no values: materialise it first"
    fix = "call .unbind() and return the parts" if tensor.is_nested else "call .to_dense()"
    return f"{str(tensor.layout).removeprefix('torch.')} tensor: {fix} first"


def _known(array: NDArray[Any]) -> NDArray[Any]:
    """Turn the dtypes that other libraries register (``ml_dtypes``) into NumPy's own."""
    if array.dtype.isbuiltin != arrays.FOREIGN:
        return array
    name = array.dtype.name
    return array.astype("u1" if name.startswith("uint") else "i1" if name.startswith("int") else "f4")
