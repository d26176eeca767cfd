"""Arrays out of binary formats sent by strangers: headers are checked against the bytes that are there.

Nothing is unpickled, nothing is decompressed, and nothing is allocated because a header says so.
"""

from __future__ import annotations

import math
import re
import struct
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from asgi_mlperf.wire import dtypes, formats, named_tensors
from asgi_mlperf.wire.casting import refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from asgi_mlperf.wire.pacing import Pace
    from asgi_mlperf.wire.received import Memory
    from asgi_mlperf.wire.shapes import Shape

_PLAIN_KINDS = "biuf"
_DIGITS = re.compile(rb"\d+")
_NPY_HEADER = re.compile(
    rb"""\s*+\{\s*+(?:(?:
        ['"]descr['"]\s*+:\s*+['"](?P<descr>[^'"]{0,32}+)['"]
      | ['"]fortran_order['"]\s*+:\s*+(?P<fortran>True|False)
      | ['"]shape['"]\s*+:\s*+\((?P<shape>(?:\s*+\d{1,18}+L?+\s*+,)*+(?:\s*+\d{1,18}+L?+)?+)\s*+\)
    )\s*+,?+\s*+){3}\}\s*+""",
    re.VERBOSE,
)
"""In any order, with any quotes and spaces: libraries differ. Possessive, or hostile spaces took for ever."""
_NPY_LENGTHS = {
    b"\x93NUMPY\x01\x00": struct.Struct("<H"),
    b"\x93NUMPY\x02\x00": struct.Struct("<I"),
    b"\x93NUMPY\x03\x00": struct.Struct("<I"),
}
_NPY_MOST_HEADER = 100_000
_BODY_HEADER = 2
_COMPRESSION = 3
_TEXTS = 4096
_DTYPE_HEADER = formats.DTYPE_HEADER.encode()
_SHAPE_HEADER = formats.SHAPE_HEADER.encode()


def read_npy(data: Memory) -> NDArray[Any]:
    """The array of a ``.npy`` file, on the memory of ``data``.

    Raises:
        BodyRefused: not such a file, another length than its header says, or a dtype that is not numbers.
    """
    length = _NPY_LENGTHS.get(bytes(data[:8]))
    if length is None or len(data) < 8 + length.size:
        raise refused("npy_invalid", "Input should be an npy file of version 1, 2 or 3")
    begin = 8 + length.size
    end = begin + min(length.unpack_from(data, 8)[0], _NPY_MOST_HEADER)
    found = _NPY_HEADER.fullmatch(data, begin, end)
    if found is None or None in found.groups():
        raise refused("npy_invalid", "Input should have an npy header of plain numbers and their shape")
    descr, sizes = found["descr"].decode("latin-1"), _DIGITS.findall(found["shape"])
    dtype = dtypes.NAMED.get(descr)
    if dtype is None:
        raise refused("dtype", f"Input should hold plain numbers, not {descr!r}")
    order = "F" if found["fortran"] == b"True" else "C"
    return _on(data, end, dtype, tuple(map(int, sizes)), order)


def read_raw(
    data: Memory, dtype: np.dtype[Any], shape: Shape, headers: Mapping[bytes, bytes]
) -> NDArray[Any]:
    """The array of plain bytes, on the memory of ``data``; headers say dtype and shape, or the declaration.

    Raises:
        BodyRefused: a header that cannot be read, another length than it says, or no way to know the shape.
    """
    named, sized = headers.get(_DTYPE_HEADER), headers.get(_SHAPE_HEADER)
    try:
        found = dtype if named is None else dtypes.NAMED[named.decode("latin-1")]
        sizes = None if sized is None else tuple(int(size) for size in sized.split(b",") if size.strip())
    except (KeyError, ValueError):
        raise refused(
            "header", f"{formats.DTYPE_HEADER} and {formats.SHAPE_HEADER} should be like float32 and 2,3"
        ) from None
    if sizes is None:
        sizes = shape.with_size(len(data) // found.itemsize)
    if sizes is None:
        raise refused("header", f"Input should fill shape ({shape.text}); say {formats.SHAPE_HEADER}")
    return _on(data, 0, found, sizes, "C")


def read_safetensors(data: Memory) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file by name, on the memory of ``data``.

    Raises:
        BodyRefused: not such a file, or a dtype that NumPy does not have.
    """
    memory = memoryview(data)
    try:
        found = list(named_tensors.entries(data))
    except ValueError as error:
        raise refused("safetensors_invalid", f"Input should be a safetensors file ({error})") from None
    return {
        entry.name: _on(memory[: entry.end], entry.begin, np.dtype(entry.dtype), entry.sizes, "C")
        for entry in found
    }


def read_arrow(data: Memory, pace: Pace) -> dict[str, NDArray[Any]]:
    """The columns of an Arrow IPC stream by name: numbers, booleans, text, and fixed-size lists of numbers.

    Raises:
        BodyRefused: not such a stream, compressed, with nulls, or of other types.
    """
    pa = import_module("pyarrow")
    try:
        _refuse_compression(pa, data)
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            table = _validated(reader)
    except (pa.ArrowException, OSError, struct.error, IndexError, ValueError) as error:
        raise refused(
            "arrow_invalid", f"Input should be an uncompressed Arrow IPC stream ({error})"
        ) from None
    return {name: _column(pa, name, table.column(name), pace) for name in table.column_names}


def _on(data: Memory, offset: int, dtype: np.dtype[Any], sizes: tuple[int, ...], order: Any) -> NDArray[Any]:
    if dtype.kind not in _PLAIN_KINDS:
        raise refused("dtype", f"Input should hold plain numbers, not {dtype}")
    size = math.prod(sizes) * dtype.itemsize
    if size != len(data) - offset or min(sizes, default=0) < 0:
        raise refused(
            "length", f"Input should have {dtype} x {list(sizes)} bytes of data, not {len(data) - offset}"
        )
    try:
        return np.ndarray(sizes, dtype, data, offset if size else 0, order=order)
    except ValueError as error:
        raise refused("shape", f"Input should have a shape that NumPy can hold ({error})") from None


def _refuse_compression(pa: Any, data: Memory) -> None:
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(data)):
        if message.type == "dictionary":
            raise ValueError("dictionaries are not read")
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("compressed")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch names a compression, read from its flatbuffer, which pyarrow does not show."""
    message = struct.unpack_from("<I", metadata)[0]
    header = _field(metadata, message, _BODY_HEADER)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return bool(_field(metadata, batch, _COMPRESSION))


def _field(metadata: bytes, table: int, number: int) -> int:
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    slot = 4 + 2 * number
    if slot + 2 > struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", metadata, vtable + slot)[0]
    return table + offset if offset else 0


def _validated(reader: Any) -> Any:
    batches = list(reader)
    for batch in batches:
        batch.validate(full=True)
    table = import_module("pyarrow").Table.from_batches(batches, reader.schema)
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("columns of the same name")
    return table


def _column(pa: Any, name: str, column: Any, pace: Pace) -> NDArray[Any]:
    kind = column.type
    if column.null_count:
        raise refused("null", "Input should have no nulls", (name,))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _texts(column, pace)
    sizes: list[int] = []
    if isinstance(kind, pa.FixedShapeTensorType) and _is_in_order(kind.permutation):
        sizes, kind = list(kind.shape), kind.value_type
        column = pa.chunked_array(
            [chunk.storage for chunk in column.chunks], pa.list_(kind, int(np.prod(sizes)))
        )
        values = _flat(pa, column)
    elif pa.types.is_fixed_size_list(kind):
        sizes, kind = [kind.list_size], kind.value_type
        values = _flat(pa, column)
    else:
        values = column
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise refused("dtype", f"Input should hold plain numbers, not {kind}", (name,))
    array: NDArray[Any] = values.to_numpy().reshape(len(column), *sizes)
    return array


def _texts(column: Any, pace: Pace) -> NDArray[Any]:
    texts = np.empty(len(column), dtype=object)
    for at in range(0, len(column), _TEXTS):
        texts[at : at + _TEXTS] = column.slice(at, _TEXTS).to_pylist()
        pace.breathe()
    return texts


def _is_in_order(permutation: list[int] | None) -> bool:
    return permutation is None or permutation == sorted(permutation)


def _flat(pa: Any, column: Any) -> Any:
    return pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
