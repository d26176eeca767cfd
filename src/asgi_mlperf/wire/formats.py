"""Arrays as the bytes of a binary format: one copy, in C order, little-endian.

The copy is on purpose: a view would let the next inference change a body that is still being sent.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import named_tensors, tensors
from asgi_mlperf.wire.arrays import is_masked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

JSON = "application/json"
NPY = "application/x-npy"
RAW = "application/octet-stream"
SAFETENSORS = "application/x-safetensors"
ARROW = "application/vnd.apache.arrow.stream"
NAMES = {JSON: "json", NPY: "npy", RAW: "raw", SAFETENSORS: "safetensors", ARROW: "arrow"}
"""What metrics call the formats."""

DTYPE_HEADER = "x-tensor-dtype"
SHAPE_HEADER = "x-tensor-shape"

_PIECE_BYTES = 1_048_576
_PLAIN_KINDS = "biufc"


@cache
def named() -> list[str]:
    """The binary formats that name their arrays, as far as what they need is installed."""
    return [SAFETENSORS, ARROW] if find_spec("pyarrow") is not None else [SAFETENSORS]


def must_load(media_type: str) -> bool:
    """Whether the format needs a library that is still to be imported, which takes long."""
    return media_type == ARROW and "pyarrow" not in sys.modules


def offers(content: object) -> list[str]:
    """The media types that can say ``content``, JSON first: one array, or a mapping of names to arrays."""
    arrays = list(content.values()) if isinstance(content, Mapping) else [content]
    if not arrays or not all(map(tensors.is_array, arrays)):
        return [JSON]
    single = [] if isinstance(content, Mapping) else [NPY, RAW]
    return [JSON, *single, *named()]


def encode(content: Any, media_type: str, name: str) -> tuple[Iterator[bytes], dict[str, str]]:
    """The body of ``content`` in ``media_type``, in pieces, and the headers that belong to it.

    A single array is called ``name`` in formats that name their arrays.

    Raises:
        UnserializableError: the format has no such dtype; names the array. Raised before the first piece.
    """
    if media_type in {NPY, RAW}:
        array = _plain(content, "$")
        return (_npy(array), {}) if media_type == NPY else (_slices(array), _raw_headers(array))
    arrays = content if isinstance(content, Mapping) else {name: content}
    named = {_name(each, media_type): array for each, array in arrays.items()}
    return (_safetensors(named) if media_type == SAFETENSORS else _arrow(named)), {}


def _name(name: object, media_type: str) -> str:
    """``name`` as plain text; a string may be NumPy's, or an enumeration's member."""
    try:
        text = str.__str__(name)
        text.encode()
    except (TypeError, UnicodeEncodeError):
        text = None
    if text is None or (text == named_tensors.METADATA and media_type == SAFETENSORS):
        raise UnserializableError(
            f"$: {name!r} cannot name an array in {NAMES[media_type]}: use another name"
        )
    return text


def _plain(value: object, path: str) -> NDArray[Any]:
    """``value`` in C order and little-endian, of a dtype that is nothing but numbers."""
    try:
        array = tensors.to_numpy(value)
    except UnserializableError as error:
        raise UnserializableError(f"{path}: {error}") from error
    if array.dtype.kind not in _PLAIN_KINDS or is_masked(array):
        raise UnserializableError(f"{path}: {array.dtype} has no binary form here: ask for JSON")
    plain: NDArray[Any] = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return plain


def _raw_headers(array: NDArray[Any]) -> dict[str, str]:
    return {DTYPE_HEADER: array.dtype.name, SHAPE_HEADER: ",".join(map(str, array.shape))}


def _npy(array: NDArray[Any]) -> Iterator[bytes]:
    header = io.BytesIO()
    form = import_module("numpy.lib.format")
    form.write_array_header_1_0(header, form.header_data_from_array_1_0(array))
    slices = _slices(array)
    yield header.getvalue() + next(slices, b"")
    yield from slices


def _slices(array: NDArray[Any]) -> Iterator[bytes]:
    flat = array.reshape(-1)
    step = _PIECE_BYTES // array.dtype.itemsize
    return (flat[at : at + step].tobytes() for at in range(0, flat.size, step))


def _safetensors(arrays: Mapping[str, Any]) -> Iterator[bytes]:
    plain = {name: _plain(array, f"$.{name}") for name, array in arrays.items()}
    for name, array in plain.items():
        if not named_tensors.can_say(array.dtype.name):
            raise UnserializableError(f"$.{name}: safetensors has no {array.dtype}: ask for another format")
    header = named_tensors.header(plain)
    if len(header) > named_tensors.MOST_HEADER_BYTES:
        raise UnserializableError(f"$: names of {len(header)} bytes in all: use shorter ones")
    return chain([header], chain.from_iterable(map(_slices, plain.values())))


def _arrow(arrays: Mapping[str, Any]) -> Iterator[bytes]:
    pa = import_module("pyarrow")
    columns = {name: _column(pa, array, f"$.{name}") for name, array in arrays.items()}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise UnserializableError(f"$: columns of different lengths {sorted(lengths)}: Arrow wants a table")
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    sink = pa.BufferOutputStream()
    try:
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    except pa.ArrowException as error:
        raise UnserializableError(f"$: Arrow cannot hold that many: {error}") from error
    body = memoryview(sink.getvalue())
    return (bytes(body[at : at + _PIECE_BYTES]) for at in range(0, len(body), _PIECE_BYTES))


def _column(pa: Any, value: object, path: str) -> Any:
    array = tensors.to_numpy(value) if _is_text(value) else _plain(value, path)
    try:
        return _in_arrow(pa, array)
    except (pa.ArrowException, OverflowError) as error:
        raise UnserializableError(
            f"{path}: Arrow cannot hold {array.dtype} of {array.shape}: {error}"
        ) from error


def _in_arrow(pa: Any, array: NDArray[Any]) -> Any:
    if array.ndim > 1 and not array.size:
        return _empty(pa, array)
    if array.ndim > 1:
        # Arrow compares strides, and NumPy leaves odd ones on axes of size one.
        return pa.FixedShapeTensorArray.from_numpy_ndarray(array.ravel().reshape(array.shape))
    return pa.array(array if array.ndim else array.reshape(1))


def _empty(pa: Any, array: NDArray[Any]) -> Any:
    """What Arrow's own way from NumPy has no answer for: lists of nothing, or no lists."""
    kind, sizes = pa.from_numpy_dtype(array.dtype), array.shape[1:]
    lists = pa.Array.from_buffers(
        pa.list_(kind, math.prod(sizes)), len(array), [None], children=[pa.array([], kind)]
    )
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, sizes), lists)


def _is_text(value: object) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "") in {"U", "M"}
