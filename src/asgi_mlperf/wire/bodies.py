"""Request bodies read straight into typed arrays, in whatever format the client sends."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from anyio import to_thread
from starlette.requests import ClientDisconnect, Request

from asgi_mlperf.exceptions import BodyRefused, ConfigurationError
from asgi_mlperf.wire import formats, readers
from asgi_mlperf.wire.answering import Routed
from asgi_mlperf.wire.casting import checked, refused
from asgi_mlperf.wire.endpoints import Endpoint
from asgi_mlperf.wire.json_arrays import read_array, read_text
from asgi_mlperf.wire.received import Received, is_untouched, light, may_be_light, received, with_first
from asgi_mlperf.wire.responses import lightness
from asgi_mlperf.wire.shapes import Shape

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from numpy.typing import DTypeLike, NDArray

    from asgi_mlperf.wire.answering import Asked

Content = TypeVar("Content")

_UNSUPPORTED = 415
_KNOWN = {kind.encode(): kind for kind in formats.NAMES}


class Body(abc.ABC, Generic[Content]):
    """Reads what was declared from the body of a request."""

    async def __call__(self, request: Request) -> Content:
        """What was declared, from the body of ``request``.

        Raises:
            BodyRefused: 413 when the body is too large, 415 for other formats, 422 when it is not what was
                declared; says where.
        """
        if is_untouched(request):
            asked = Routed(request.scope, request.receive, request._send)  # noqa: SLF001 - nothing is sent
            try:
                return await self.of(asked)
            except ClientDisconnect:
                request._is_disconnected = True  # noqa: SLF001 - as its stream does
                raise
            finally:
                request._stream_consumed = asked.is_read  # noqa: SLF001 - as above
        headers = dict(request.scope["headers"])
        return await self._taken(await received(request, headers), media_type(headers), headers)

    @property
    def own(self) -> Callable[[Asked], Awaitable[Content]] | None:
        """What a call comes to, without Starlette's request; None where a subclass does something else."""
        return self.of if type(self).__call__ is Body.__call__ else None

    async def of(self, asked: Asked) -> Content:
        """The same, of a request of which nobody has read anything."""
        headers, limits, receive = dict(asked.scope["headers"]), lightness(), asked.receive
        if may_be_light(headers, limits):
            # Past a request's stream: to make and end that generator takes nearly as long as all the rest.
            message = await asked.first()
            text = light(message, limits)
            if text is not None:
                asked.is_read = True
                kind = media_type(headers)
                if kind == formats.JSON:
                    return self._read_text(text)
                return await self._taken(Received([text]), kind, headers)
            receive = with_first(message, receive)
        request = Request(asked.scope, receive)
        try:
            body = await received(request, headers)
        finally:
            asked.is_read = request._stream_consumed  # noqa: SLF001 - nobody else knows
        return await self._taken(body, media_type(headers), headers)

    def endpoint(self, func: Callable[[Content], Awaitable[object]]) -> Endpoint[Content]:
        """Make an endpoint of ``func``, which takes what was declared and returns what is to be answered.

        For Starlette's routes, also in FastAPI: ``FastAPI(routes=[Route("/scores", row.endpoint(predict),
        methods=["POST"])])``. The shortest way to a small model: nothing stands between body, function and
        answer that they do not need. ``func`` may return what an ``ORJSONResponse`` says, or a ``Response``.
        """
        return Endpoint(self, func)

    async def _taken(self, body: Received, kind: str, headers: Mapping[bytes, bytes]) -> Content:
        if body.is_heavy or (kind != formats.JSON and formats.must_load(kind)):
            return await to_thread.run_sync(self._read, body, kind, headers)
        return self._read(body, kind, headers)

    def _read_text(self, text: bytes) -> Content:
        """What a light body of JSON holds."""
        return self._read(Received([text]), formats.JSON, {})

    @abc.abstractmethod
    def _read(self, body: Received, kind: str, headers: Mapping[bytes, bytes]) -> Content:
        """What ``body`` holds, of a media type; in a thread if it is heavy."""


class ArrayBody(Body["NDArray[Any]"]):
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
        self.shape = Shape(shape)
        self._raw_dtype = self.dtype.newbyteorder("<")
        self.finite = finite
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > np.dtype("f8").itemsize:
            raise ConfigurationError(f"{self.dtype} cannot be read from a body: use bool, integers or floats")

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI request body, with every media type."""
        names = {"f": "number", "i": "integer", "u": "integer", "b": "boolean"}
        content = {formats.JSON: {"schema": self.shape.schema({"type": names[self.dtype.kind]})}}
        return {"required": True, "content": content | binary_content(formats.NPY, formats.RAW)}

    def _read_text(self, text: bytes) -> NDArray[Any]:
        return read_text(text, self.dtype, self.shape, finite=self.finite)

    def _read(self, body: Received, kind: str, headers: Mapping[bytes, bytes]) -> NDArray[Any]:
        if kind == formats.JSON:
            return read_array(body, self.dtype, self.shape, finite=self.finite)
        if kind == formats.RAW:
            array = readers.read_raw(body.memory(), self._raw_dtype, self.shape, headers)
        elif kind == formats.NPY:
            array = readers.read_npy(body.memory())
        else:
            array = _only(read_named(body, kind, [formats.NPY, formats.RAW]))
        return checked(array, self.dtype, self.shape, finite=self.finite)


def _only(arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if len(arrays) != 1:
        raise refused("count", f"Input should hold one array, not {len(arrays)}")
    return next(iter(arrays.values()))


def read_named(body: Received, kind: str, others: list[str]) -> dict[str, NDArray[Any]]:
    """The arrays by name of a body in one of the formats that name them.

    Raises:
        BodyRefused: 415 for a format that is none of them, 422 for a body that is not in its format.
    """
    if kind == formats.SAFETENSORS:
        return readers.read_safetensors(body.memory())
    if kind == formats.ARROW and kind in formats.named():
        return readers.read_arrow(body.memory(), body.pace)
    offered = ", ".join([formats.JSON, *others, *formats.named()])
    raise BodyRefused(
        _UNSUPPORTED, "media_type", f"Content-Type should be one of {offered}, not {kind[:100]!r}"
    )


def binary_content(*kinds: str) -> dict[str, Any]:
    """The OpenAPI media types of ``kinds`` and of the formats that name their arrays."""
    return {
        kind: {"schema": {"type": "string", "format": "binary", "contentMediaType": kind}}
        for kind in (*kinds, formats.SAFETENSORS, formats.ARROW)
    }


def media_type(headers: Mapping[bytes, bytes]) -> str:
    """The media type of the body, without parameters; JSON when the client does not say."""
    told = headers.get(b"content-type", b"application/json")
    return _KNOWN.get(told) or _media_type(told.decode("latin-1"))


def _media_type(told: str) -> str:
    kind = told.partition(";")[0].strip().lower()
    return formats.JSON if kind.startswith("application/") and kind.endswith("+json") else kind
