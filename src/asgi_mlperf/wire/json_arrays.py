"""JSON text straight into an array: orjson, and no object per element that outlives its piece."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import orjson

from asgi_mlperf.wire.casting import as_declared, checked, refused
from asgi_mlperf.wire.json_numbers import read_numbers
from asgi_mlperf.wire.leaves import PACKED, packed
from asgi_mlperf.wire.nested import MOST_AXES, Nested
from asgi_mlperf.wire.pacing import LIGHT
from asgi_mlperf.wire.received import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from asgi_mlperf.exceptions import BodyRefused
    from asgi_mlperf.wire.received import Received
    from asgi_mlperf.wire.shapes import Shape

_MOST_OPEN = MOST_AXES + 1
"""One more than is read: enough to see that it is too many."""
_OPENING = re.compile(rb"[ \t\r\n]*((?:\[[ \t\r\n]*){0,%d})" % _MOST_OPEN)
_GAP = re.compile(rb"[ \t\r\n]*(?:[\]},]|\Z)")
_OTHER = re.compile(rb'["{]')
_CLOSING = b"] \t\r\n"
_SHORT_TEXT = 4096
"""From about 500 numbers on simdjson is faster."""


def loads(data: bytes | bytearray, offset: int = 0) -> Any:
    """The value of a JSON text that stands at ``offset``.

    Raises:
        BodyRefused: not JSON, or nested deeper than orjson reads.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _invalid(error, offset) from None


def read_array(body: Received, dtype: np.dtype[Any], shape: Shape, *, finite: bool) -> NDArray[Any]:
    """The nested lists in ``body`` as an array of ``dtype`` and ``shape``; ``null`` is NaN unless ``finite``.

    Raises:
        BodyRefused: not JSON, ragged, of another shape, or not numbers that ``dtype`` can hold; says where.
    """
    if not body.is_heavy:
        return read_text(body.text(), dtype, shape, finite=finite)
    return checked(_in_pieces(body, dtype, shape, finite=finite), dtype, shape, finite=False)  # was looked at


def read_text(text: bytes, dtype: np.dtype[Any], shape: Shape, *, finite: bool) -> NDArray[Any]:
    """The same of a body that is light."""
    numbers = short_list(text, dtype) if shape.may_be_flat else None
    if numbers is not None and shape.fits(numbers.shape):
        return numbers
    if (numbers := read_numbers(text, dtype)) is not None and shape.fits(numbers.shape):
        return as_declared(numbers, dtype, finite=False)  # JSON has only finite numbers
    value = loads(text)
    nested = Nested(_depth(value), dtype, shape, finite=finite)
    nested.add(value, is_plain=_is_plain(text))
    return checked(nested.array(LIGHT), dtype, shape, finite=False)


def short_list(text: bytes, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """What a short text holds that is one list of numbers; nothing where that is for another reader to say.

    Rows of features mostly are that, and all that other readers look at takes longer than to read them.
    """
    code = PACKED.get(dtype)
    if code is None or len(text) > _SHORT_TEXT or text.find(b"[", 1) >= 0:
        return None  # count() takes a tenth of all this, byte by byte
    if b"t" in text or b"f" in text:  # not plain: ``struct`` would take booleans for numbers
        return None
    try:
        value = orjson.loads(text)
        return packed(value, code, dtype) if type(value) is list else None
    except (orjson.JSONDecodeError, struct.error, OverflowError):
        return None


def _in_pieces(body: Received, dtype: np.dtype[Any], shape: Shape, *, finite: bool) -> NDArray[Any]:
    """What a heavy body is, cut at commas; the brackets that stand open there complete each piece."""
    pieces = texts_before_commas(body)
    text, is_last = next(pieces)
    nested = Nested(_OPENING.match(text)[1].count(b"["), dtype, shape, finite=finite)  # type: ignore[index] # matches all
    opened = _add_piece(nested, text, 0, 0, is_last=is_last)
    offset = len(text) + 1
    for text, is_last in pieces:
        opened = _add_piece(nested, text, opened, offset, is_last=is_last)
        offset += len(text) + 1
    return nested.array(body.pace)


def texts_before_commas(body: Received) -> Iterator[tuple[bytes, bool]]:
    """The text of ``body``, cut at commas of whatever kind, and whether it is the last piece."""
    waiting: list[bytes] = []
    size = 0
    for piece in body.pieces():
        size += len(piece)
        head, comma, rest = piece.rpartition(b",")
        if comma and size >= PIECE_BYTES:
            yield b"".join([*waiting, head]), False
            waiting, size = [rest], len(rest)
        else:
            waiting.append(piece)
    yield b"".join(waiting), True


def refuse_gap(text: bytes, offset: int) -> None:
    """Refuse a body in which no value follows a comma: ``text`` after it, at ``offset``."""
    if _GAP.match(text):
        loads(b"[0," + text, offset - len(b"[0,"))


def _add_piece(nested: Nested, text: bytes, opened: int, offset: int, *, is_last: bool) -> int:
    """Add the piece of text that stands at ``offset``; returns how many lists are open at its end."""
    found = _OTHER.search(text) if b'"' in text or b"{" in text else None
    if found is not None:
        text, comma, _ = text[: found.start()].rpartition(b",")
        if comma:
            _add_piece(nested, text, opened, offset, is_last=False)
        nested.refuse_next()
    if opened:
        refuse_gap(text, offset)
    value, closed = _completed(text, opened, nested.depth, offset, is_last=is_last)
    nested.add(value, is_plain=_is_plain(text), opened=opened, closed=closed)
    return closed


def _completed(text: bytes, opened: int, depth: int, offset: int, *, is_last: bool) -> tuple[Any, int]:
    """The value of a piece, and how many brackets had to be closed for it: if it is ragged, any number."""
    if is_last:
        return loads(b"[" * opened + text, offset - opened), 0
    before = text.rstrip(_CLOSING)
    likely = depth - text.count(b"]", len(before))
    if likely < 1 or (likely == depth and before.endswith(b"[")):
        loads(b"[" * opened + text + b",", offset - opened)
    refusal = None
    for count in (likely, *range(1, _MOST_OPEN)):
        try:
            return orjson.loads(b"[" * opened + text + b"]" * count), count
        except orjson.JSONDecodeError as error:
            refusal = refusal or _invalid(error, offset - opened)
            if error.pos < opened + len(text):
                break
    raise refusal  # type: ignore[misc] # there is at least one count


def _depth(value: Any) -> int:
    depth = 0
    while type(value) is list:
        depth += 1
        value = value[0] if value else None
    return depth


def _is_plain(text: bytes) -> bool:
    """Whether a text without strings and objects holds no booleans."""
    return b"t" not in text and b"f" not in text


def _invalid(error: orjson.JSONDecodeError, offset: int) -> BodyRefused:
    return refused("json_invalid", f"JSON decode error: {error.msg}", (error.pos + offset,))
