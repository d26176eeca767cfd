"""Request bodies that are tables, as one typed array per column, without a data frame in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from asgi_mlperf.exceptions import BodyRefused, ConfigurationError
from asgi_mlperf.wire import formats, json_tables
from asgi_mlperf.wire.bodies import Body, binary_content, read_named
from asgi_mlperf.wire.casting import checked, refused
from asgi_mlperf.wire.leaves import Parts, to_array
from asgi_mlperf.wire.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray

    from asgi_mlperf.wire.received import Received

_ROWS = Shape("rows")
_JSON_TYPES = {"f": "number", "i": "integer", "u": "integer", "b": "boolean", "O": "string"}


class TableBody(Body["dict[str, NDArray[Any]]"]):
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

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI request body, with every media type."""
        types = {name: {"type": _JSON_TYPES[dtype.kind]} for name, dtype in self.columns.items()}
        lists = {name: {"type": "array", "items": item} for name, item in types.items()}
        by_column = {"type": "object", "properties": lists, "required": list(types)}
        record = {"type": "object", "properties": types, "required": list(types)}
        schema = {"anyOf": [by_column, {"type": "array", "items": record}]}
        return {"required": True, "content": {formats.JSON: {"schema": schema}} | binary_content()}

    def _read(self, body: Received, kind: str, _headers: Mapping[bytes, bytes]) -> dict[str, NDArray[Any]]:
        if kind == formats.JSON:
            table = self._from_json(body)
        else:
            arrays = read_named(body, kind, [])
            table = {name: self._checked(name, _member(arrays, name)) for name in self.columns}
        lengths = {name: len(column) for name, column in table.items()}
        if len(set(lengths.values())) > 1:
            raise refused("length", f"Columns should have the same length, not {lengths}")
        return table

    def _from_json(self, body: Received) -> dict[str, NDArray[Any]]:
        columns: dict[str, Parts] = {}
        refusals: dict[str, BodyRefused] = {}
        for name, values, is_first in json_tables.parts(body, list(self.columns)):
            if name not in self.columns:
                continue
            if is_first:  # of a key that comes twice the last counts, as in any JSON
                columns[name] = Parts(self.columns[name])
                refusals.pop(name, None)
            try:
                if name not in refusals:
                    columns[name].add(self._from_list(name, values, columns[name].size))
            except BodyRefused as refusal:
                refusals[name] = refusal
        for refused_column in refusals.values():
            raise refused_column
        return {name: _member(columns, name).joined(body.pace) for name in self.columns}

    def _from_list(self, name: str, values: Any, start: int) -> NDArray[Any]:
        if not isinstance(values, list):
            raise refused("list_type", "Input should be a list", (name,))
        dtype = self.columns[name]
        if dtype.kind == "O":
            return _texts(name, values, start)
        return to_array(values, dtype, lambda at: (name, start + at), finite=self.finite)

    def _checked(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if self.columns[name].kind != "O":
            return checked(array, self.columns[name], _ROWS, finite=self.finite, loc=(name,))
        return array if array.dtype.kind == "O" else _texts(name, array[:1].tolist(), 0)


def _member(members: Mapping[str, Any], name: str) -> Any:
    if name not in members:
        raise refused("missing", "Field required", (name,))
    return members[name]


def _texts(name: str, values: list[Any], start: int) -> NDArray[Any]:
    if not set(map(type, values)) <= {str}:
        at = next(at for at, value in enumerate(values) if type(value) is not str)
        raise refused("string_type", "Input should be a string", (name, start + at))
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return texts
