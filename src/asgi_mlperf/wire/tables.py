"""Request bodies that are tables, as one typed array per column, without a data frame in between."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.wire import formats
from asgi_mlperf.wire.bodies import binary_content, headers_of, media_type, off_loop, read_body, read_named
from asgi_mlperf.wire.casting import checked, refused
from asgi_mlperf.wire.json_arrays import loads, to_array
from asgi_mlperf.wire.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray
    from starlette.requests import Request

_ROWS = Shape.parse("rows")
_JSON_TYPES = {"f": "number", "i": "integer", "u": "integer", "b": "boolean", "O": "string"}


class TableBody:
    """Reads a table from a request body: ``await TableBody({"age": np.int64, "city": str})(request)``.

    JSON, as columns ``{"age": [...], "city": [...]}`` or as records ``[{"age": 1, "city": "Bonn"}, ...]``,
    safetensors or an Arrow IPC stream. Every declared column is there, with its dtype (``str`` becomes an
    object array of ``str``) and as many values as the others; columns that were not declared are ignored.
    Numbers are finite unless ``finite=False``, and never wrapped or truncated to fit.
    """

    def __init__(self, columns: Mapping[str, DTypeLike], *, finite: bool = True) -> None:
        """Declare the columns by name.

        Raises:
            ConfigurationError: no columns, or a dtype that is not text, boolean, integer or float.
        """
        self.columns = {name: np.dtype(object if dtype is str else dtype) for name, dtype in columns.items()}
        self.finite = finite
        wrong = [name for name, dtype in self.columns.items() if dtype.kind not in _JSON_TYPES]
        if wrong or not columns:
            raise ConfigurationError(
                f"columns {wrong}: declare at least one, as str, bool, integers or floats"
            )

    async def __call__(self, request: Request) -> dict[str, NDArray[Any]]:
        """The columns in the body of ``request``, in the declared order.

        Raises:
            BodyRefused: 413 when the body is too large, 415 for other formats, 422 when it is not the table
                that was declared; says where.
        """
        headers = headers_of(request)
        data = await read_body(request, headers)
        table: dict[str, NDArray[Any]] = await off_loop(
            partial(self._read, data, media_type(headers)), len(data)
        )
        return table

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI request body, with every media type."""
        types = {name: {"type": _JSON_TYPES[dtype.kind]} for name, dtype in self.columns.items()}
        lists = {name: {"type": "array", "items": item} for name, item in types.items()}
        by_column = {"type": "object", "properties": lists, "required": list(types)}
        record = {"type": "object", "properties": types, "required": list(types)}
        schema = {"anyOf": [by_column, {"type": "array", "items": record}]}
        return {"required": True, "content": {formats.JSON: {"schema": schema}} | binary_content()}

    def _read(self, data: bytearray, kind: str) -> dict[str, NDArray[Any]]:
        if kind == formats.JSON:
            table = self._from_json(loads(data))
        else:
            arrays = read_named(data, kind, [])
            table = {name: self._checked(name, _member(arrays, name, ())) for name in self.columns}
        lengths = {name: len(column) for name, column in table.items()}
        if len(set(lengths.values())) > 1:
            raise refused("length", f"Columns should have the same length, not {lengths}")
        return table

    def _from_json(self, content: Any) -> dict[str, NDArray[Any]]:
        if isinstance(content, dict):
            columns = {name: _member(content, name, ()) for name in self.columns}
        elif isinstance(content, list):
            columns = {
                name: [_member(record, name, (at,)) for at, record in enumerate(content)]
                for name in self.columns
            }
        else:
            raise refused("type", "Input should be an object of columns, or a list of records")
        return {name: self._from_list(name, values) for name, values in columns.items()}

    def _from_list(self, name: str, values: Any) -> NDArray[Any]:
        if not isinstance(values, list):
            raise refused("list_type", "Input should be a list", (name,))
        dtype = self.columns[name]
        if dtype.kind == "O":
            return _texts(name, values)
        return self._checked(name, to_array(values, dtype, (len(values),), finite=self.finite, loc=(name,)))

    def _checked(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if self.columns[name].kind == "O":
            return _texts(name, array.tolist())
        return checked(array, self.columns[name], _ROWS, finite=self.finite, loc=(name,))


def _member(members: Any, name: str, loc: tuple[int, ...]) -> Any:
    if not isinstance(members, dict):
        raise refused("type", "Input should be an object", loc)
    if name not in members:
        raise refused("missing", "Field required", (*loc, name))
    return members[name]


def _texts(name: str, values: list[Any]) -> NDArray[Any]:
    for at, value in enumerate(values):
        if type(value) is not str:
            raise refused("string_type", "Input should be a string", (name, at))
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return texts
