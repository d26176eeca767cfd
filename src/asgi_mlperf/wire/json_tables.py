"""JSON tables, whole or in pieces: columns ``{"age": [...]}`` or records ``[{"age": 1}, ...]``."""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from asgi_mlperf.wire.casting import refused
from asgi_mlperf.wire.json_arrays import loads, refuse_gap
from asgi_mlperf.wire.received import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.wire.received import Received

_OBJECT = re.compile(rb"[ \t\r\n]*\{")
_LIST = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*([{\]]|\Z)?")
_SPACE = b" \t\r\n"
_OPEN = (b"[", b"{")
_COMMA = re.compile(rb"[ \t\r\n]*,")
_GOES_ON = secrets.token_hex(16)
"""The key of a column that began in an earlier piece; clients cannot guess it."""
_TRIES = 8
_LONG_BYTES = 16 * PIECE_BYTES


class Part(NamedTuple):
    """Values of a column: its first, or those that follow the part before."""

    name: str
    values: Any
    is_first: bool


def parts(body: Received, names: list[str]) -> Iterator[Part]:
    """The columns of a table, of which ``names`` are wanted, part by part.

    Raises:
        BodyRefused: not JSON, or no table.
    """
    if body.is_heavy:
        yield from _in_pieces(body, names)
        return
    table = loads(body.text())
    if isinstance(table, dict):
        yield from (Part(name, values, is_first=True) for name, values in table.items())
    elif isinstance(table, list):
        yield from _Records(names).parts(table, b"", b"")
    else:
        raise _no_table()


class _Records:
    """Cut between records."""

    closers = (b"]",)

    def __init__(self, names: list[str]) -> None:
        self.prefix = b""
        self._names = names
        self._count = 0

    def check(self, text: bytes, _offset: int) -> None:
        if self._count and _OBJECT.match(text) is None:
            raise _no_record(self._count)

    def ends(self, text: bytes) -> Iterator[int]:
        end = len(text)
        while (end := text.rfind(b"}", 0, end)) >= 0:
            comma = _COMMA.match(text, end + 1)
            if comma is not None:
                yield comma.end() - 1

    def parts(self, records: list[Any], _text: bytes, _closer: bytes) -> Iterator[Part]:
        for name in self._names:
            values = [_member(record, name, at) for at, record in enumerate(records, self._count)]
            yield Part(name, values, is_first=not self._count)
        self._count += len(records)
        self.prefix = b"["


class _Columns:
    """Cut anywhere in a column, or between columns."""

    closers = (b"]}", b"}")

    def __init__(self) -> None:
        self.prefix = b""
        self._current = ""

    def check(self, text: bytes, offset: int) -> None:
        if self.prefix:
            refuse_gap(text, offset)

    def ends(self, text: bytes) -> Iterator[int]:
        end = len(text)
        for _ in range(_TRIES):  # each copies the text, and a hostile one is nothing but such commas
            end = text.rfind(b",", 0, end)
            if end < 0:
                return
            if not text[:end].rstrip(_SPACE).endswith(_OPEN):
                yield end

    def parts(self, columns: dict[str, Any], text: bytes, closer: bytes) -> Iterator[Part]:
        for name, values in columns.items():
            is_first = name != _GOES_ON
            yield Part(name if is_first else self._current, values, is_first=is_first)
        self.prefix = b"{"
        if closer == b"]}":
            last = _open_key(text, columns)
            self._current = self._current if last == _GOES_ON else last
            self.prefix = b'{"%s":[' % _GOES_ON.encode()


def _in_pieces(body: Received, names: list[str]) -> Iterator[Part]:
    """Cut at commas such that the brackets that are open there complete each piece.

    Text before a cut is read the same way whatever follows it; so no brackets complete what is cut within a
    string, or deeper.
    """
    waiting: list[bytes] = []
    size, least, offset = 0, PIECE_BYTES, 0
    reader: _Records | _Columns | None = None
    for piece in body.pieces():
        waiting.append(piece)
        size += len(piece)
        if size < least:
            continue
        text = b"".join(waiting)
        waiting = [text]
        if text.isspace():
            least = 2 * size
            continue
        reader = reader or _reader(text, names)
        reader.check(text, offset)
        found = _first_complete(reader, text)
        if found is None:
            least = 2 * size
            continue
        table, end, closer = found
        yield from reader.parts(table, reader.prefix + text[:end] + closer, closer)
        text, least, offset = text[end + 1 :], PIECE_BYTES, offset + end + 1
        waiting, size = [text], len(text)
    text = b"".join(waiting)
    reader = reader or _reader(text, names)
    reader.check(text, offset)
    whole = reader.prefix + text
    yield from reader.parts(loads(whole, offset - len(reader.prefix)), whole, b"")


def _reader(text: bytes, names: list[str]) -> _Records | _Columns:
    if _OBJECT.match(text):
        return _Columns()
    opening = _LIST.match(text)
    if opening is None:
        raise _no_table()
    if opening[1] is None:
        raise _no_record(0)
    return _Records(names)


def _first_complete(reader: _Records | _Columns, text: bytes) -> tuple[Any, int, bytes] | None:
    tries = _TRIES if len(text) < _LONG_BYTES else 1
    for end, _ in zip(reader.ends(text), range(tries), strict=False):
        for closer in reader.closers:
            with suppress(orjson.JSONDecodeError):
                return orjson.loads(reader.prefix + text[:end] + closer), end, closer
    return None


def _open_key(text: bytes, columns: dict[str, Any]) -> str:
    """The key of the list that ``]}`` closed at the end of ``text``; a key may come twice."""
    if len(columns) == 1:
        return next(iter(columns))
    marked = orjson.loads(text[: -len(b"]}")] + b',"%s"]}' % _GOES_ON.encode())
    ends = (name for name, values in marked.items() if type(values) is list and values[-1:] == [_GOES_ON])
    name: str = next(ends)
    return name


def _member(record: Any, name: str, at: int) -> Any:
    if not isinstance(record, dict):
        raise _no_record(at)
    if name not in record:
        raise refused("missing", "Field required", (at, name))
    return record[name]


def _no_table() -> Exception:
    return refused("type", "Input should be an object of columns, or a list of records")


def _no_record(at: int) -> Exception:
    return refused("type", "Input should be an object", (at,))
