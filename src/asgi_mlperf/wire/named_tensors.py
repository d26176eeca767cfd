"""The safetensors format: a length, a JSON header that says where each tensor stands, and their bytes.

The library of that name reads and writes a body in one call that holds the interpreter, 50 ms for 100 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from asgi_mlperf.wire.received import Memory

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
METADATA = "__metadata__"
"""What a header calls texts about the file; no tensor can have that name."""
_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 1_000_000


class Entry(NamedTuple):
    """What a header says of a tensor; ``begin`` and ``end`` count from the start of the body."""

    name: str
    dtype: str
    sizes: tuple[int, ...]
    begin: int
    end: int


def can_say(dtype: str) -> bool:
    """Whether the format has this NumPy dtype."""
    return dtype in _NAMES


def header(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What stands before the bytes of ``arrays``, which follow in this order without gaps."""
    told, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        told[name] = {"dtype": _NAMES[array.dtype.name], "shape": array.shape, "data_offsets": (begin, end)}
    text = orjson.dumps(told)
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def entries(data: Memory) -> Iterator[Entry]:
    """What stands in a body, in the order of the bytes.

    Raises:
        ValueError: not such a body.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if not length or length > MOST_HEADER_BYTES or end > len(data):
        raise ValueError(f"a header of {length} bytes")
    try:
        told = orjson.loads(data[_LENGTH_BYTES:end])
        told.pop(METADATA, None)
        for name, entry in sorted(told.items(), key=lambda item: item[1]["data_offsets"]):
            if set(map(type, entry["data_offsets"])) != {int}:
                raise ValueError(f"{name} at {entry['data_offsets']}")
            begin = end
            end += entry["data_offsets"][1] - entry["data_offsets"][0]
            if [begin, end] != [_LENGTH_BYTES + length + offset for offset in entry["data_offsets"]]:
                raise ValueError(f"{name} does not follow the tensor before it")
            yield Entry(name, _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"])), begin, end)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"a header with {error!r}") from error
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes too many")
