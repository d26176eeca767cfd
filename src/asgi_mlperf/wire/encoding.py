"""JSON text for whatever handlers return: one orjson call, and where that fails, the exact walk."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import orjson

from asgi_mlperf.exceptions import UnserializableError
from asgi_mlperf.wire import fast
from asgi_mlperf.wire.exact import Walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.wire.responses import JSONSettings

_PIECE_BYTES = 131_072


def dumps(content: object, settings: JSONSettings) -> bytes:
    """The JSON text of ``content``, in UTF-8, without spaces.

    Raises:
        UnserializableError: JSON cannot say it; names the path to the offending value.
    """
    return _at_once(content, settings) or b"".join(Walk(settings).texts(content))


def begin(content: object, settings: JSONSettings) -> tuple[bytes, Iterator[bytes] | None]:
    """The same text, or, if it turns out heavy, nothing and its pieces, of which the first are made already.

    Raises:
        UnserializableError: JSON cannot say it; names the path to the offending value.
    """
    text = _at_once(content, settings)
    if text is not None:
        return text, None
    rest, size, made = pieces(content, settings), 0, []
    for piece in rest:
        made.append(piece)
        size += len(piece)
        if size >= settings.offload_bytes:
            return b"", chain(made, rest)
    return b"".join(made), None


def pieces(content: object, settings: JSONSettings) -> Iterator[bytes]:
    """The same text as :func:`dumps`, in pieces that take about a millisecond each.

    Raises:
        UnserializableError: JSON cannot say it; the pieces before are already out.
    """
    waiting: list[bytes] = []
    size = 0
    for text in Walk(settings).texts(content):
        waiting.append(text)
        size += len(text)
        if size >= _PIECE_BYTES:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    yield b"".join(waiting)


def _at_once(content: object, settings: JSONSettings) -> bytes | None:
    try:
        return fast.dumps(content) if settings.is_plain else None
    except (orjson.JSONEncodeError, UnserializableError):
        return None
