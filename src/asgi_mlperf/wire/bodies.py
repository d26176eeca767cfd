"""Request bodies read straight into typed arrays, in whatever format the client sends."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from anyio import to_thread

from asgi_mlperf.exceptions import BodyRefused, ConfigurationError
from asgi_mlperf.wire import formats, readers
from asgi_mlperf.wire.casting import checked, refused
from asgi_mlperf.wire.json_arrays import read_array
from asgi_mlperf.wire.responses import json_settings
from asgi_mlperf.wire.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray
    from starlette.requests import Request

_TOO_LARGE = 413
_UNSUPPORTED = 415
_LENGTH_DIGITS = 18


class ArrayBody:
    """Reads one array from a request body: ``x = await ArrayBody(np.float32, "n 256")(request)``.

    JSON (nested lists), ``application/x-npy``, ``application/octet-stream`` (dtype and shape from
    ``X-Tensor-Dtype`` and ``X-Tensor-Shape``, or from the declaration), and safetensors and Arrow IPC
    streams with a single tensor or column. The array has the declared dtype and shape, is writable, aligned
    and in C order, and, unless ``finite=False``, holds neither NaN nor infinities. Numbers are never wrapped
    or truncated to fit. Pickles, object arrays and compressed bodies are refused.
    """

    def __init__(self, dtype: DTypeLike, shape: str = "...", *, finite: bool = True) -> None:
        """Declare the array; see :class:`Shape` for ``shape``.

        Raises:
            ConfigurationError: a dtype that is not boolean, integer or float, or a shape that cannot be read.
        """
        self.dtype = np.dtype(dtype)
        self.shape = Shape.parse(shape)
        self.finite = finite
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > np.dtype("f8").itemsize:
            raise ConfigurationError(f"{self.dtype} cannot be read from a body: use bool, integers or floats")

    async def __call__(self, request: Request) -> NDArray[Any]:
        """The array in the body of ``request``.

        Raises:
            BodyRefused: 413 when the body is too large, 415 for other formats, 422 when it is not the array
                that was declared; says where.
        """
        headers = headers_of(request)
        data = await read_body(request, headers)
        read = partial(self._read, data, media_type(headers), headers)
        array: NDArray[Any] = await off_loop(read, len(data))
        return array

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI request body, with every media type."""
        names = {"f": "number", "i": "integer", "u": "integer", "b": "boolean"}
        content = {formats.JSON: {"schema": self.shape.schema({"type": names[self.dtype.kind]})}}
        return {"required": True, "content": content | binary_content(formats.NPY, formats.RAW)}

    def _read(self, data: bytearray, kind: str, headers: Mapping[str, str]) -> NDArray[Any]:
        if kind == formats.JSON:
            array = read_array(data, self.dtype, self.shape, finite=self.finite)
        elif kind == formats.NPY:
            array = readers.read_npy(data)
        elif kind == formats.RAW:
            array = readers.read_raw(data, self.dtype, self.shape, headers)
        else:
            array = _only(read_named(data, kind, [formats.NPY, formats.RAW]))
        return checked(array, self.dtype, self.shape, finite=self.finite)


def _only(arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if len(arrays) != 1:
        raise refused("count", f"Input should hold one array, not {len(arrays)}")
    return next(iter(arrays.values()))


def read_named(data: bytearray, kind: str, others: list[str]) -> dict[str, NDArray[Any]]:
    """The arrays by name of a body in one of the formats that name them.

    Raises:
        BodyRefused: 415 for a format that is none of them, 422 for a body that is not in its format.
    """
    installed = [name for name, library in formats.LIBRARIES.items() if find_spec(library) is not None]
    if kind not in installed:
        offered = ", ".join([formats.JSON, *others, *installed])
        raise BodyRefused(
            _UNSUPPORTED, "media_type", f"Content-Type should be one of {offered}, not {kind[:100]!r}"
        )
    return readers.read_safetensors(data) if kind == formats.SAFETENSORS else readers.read_arrow(data)


def binary_content(*kinds: str) -> dict[str, Any]:
    """The OpenAPI media types of ``kinds`` and of the formats that name their arrays."""
    return {
        kind: {"schema": {"type": "string", "format": "binary", "contentMediaType": kind}}
        for kind in (*kinds, *formats.LIBRARIES)
    }


def headers_of(request: Request) -> dict[str, str]:
    """The headers of ``request``, decoded once; the last of equal names."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}


def media_type(headers: Mapping[str, str]) -> str:
    """The media type of the body, without parameters; JSON when the client does not say."""
    kind = headers.get("content-type", formats.JSON).partition(";")[0].strip().lower()
    return formats.JSON if kind.startswith("application/") and kind.endswith("+json") else kind


async def read_body(request: Request, headers: Mapping[str, str]) -> bytearray:
    """The body of ``request``, which has these ``headers``, in writable memory.

    Raises:
        BodyRefused: 413 above the limit in the settings, before it is read if the client says its length;
            415 when it is compressed.
    """
    limit = json_settings.get().body_limit_bytes
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise BodyRefused(_UNSUPPORTED, "content_encoding", "Input should not be compressed")
    length = headers.get("content-length", "0")
    if len(length) > _LENGTH_DIGITS or (length.isdecimal() and int(length) > limit):
        raise _too_large(limit)
    data = bytearray()
    async for chunk in request.stream():
        if len(data) + len(chunk) > limit:
            raise _too_large(limit)
        data += chunk
    return data


async def off_loop(read: Any, size: int) -> Any:
    """The result of ``read``, called in a thread when the body is large."""
    return await to_thread.run_sync(read) if size >= json_settings.get().offload_bytes else read()


def _too_large(limit: int) -> BodyRefused:
    return BodyRefused(_TOO_LARGE, "too_large", f"Input should have at most {limit} bytes")
