"""Lists of JSON numbers straight into an array with simdjson, where that is installed."""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from asgi_mlperf.wire.nested import MOST_AXES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_OPEN = ord("[")
_KINDS = {"f": "d", "i": "i", "u": "u"}
_SHORT_LIST = 8
_SHORT_TEXT = 16_384


def read_numbers(text: bytes, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The array of 64 bits a number that ``text`` holds, or nothing where that is for another reader to say.

    Nothing, unless it is a list of numbers, or lists of equal lengths of them, that fit into 64 bits of the
    kind of ``dtype``; nor where most lists are so short that it takes longer; nor without simdjson.
    """
    parse, kind = _parser(), _KINDS.get(dtype.kind)
    if parse is None or kind is None or not text.startswith(b"["):  # simdjson passes over a byte order mark
        return None
    count = _lists_in(text)
    if count * _SHORT_LIST > len(text):
        return None
    try:
        lists = parse(text)
        numbers = np.frombuffer(lists.as_buffer(of_type=kind), dtype.kind + "8")
        sizes = _sizes(lists, count)
    except (ValueError, TypeError, RuntimeError, MemoryError):
        return None
    fills = 0 < numbers.size == math.prod(sizes) and len(sizes) <= MOST_AXES
    return numbers.reshape(sizes) if fills else None


def _lists_in(text: bytes) -> int:
    """How many lists open in ``text``; if it is short, a search for each is faster than a look at all."""
    if len(text) < _SHORT_TEXT:
        return text.count(b"[")
    return int(np.count_nonzero(np.frombuffer(text, "u1") == _OPEN))


def _sizes(lists: Any, count: int) -> list[int]:
    """The sizes of ``count`` nested lists.

    Raises:
        ValueError: lists that are equally deep are of unequal length.
        TypeError: a number stands beside a list.
    """
    level, sizes = [lists], []
    while count:
        count -= len(level)
        (length,) = set(map(len, level))
        sizes.append(length)
        if count:
            level = list(chain.from_iterable(level))
    return sizes


@cache
def _parser() -> Callable[[bytes], Any] | None:
    try:
        parser = import_module("simdjson").Parser
    except (ImportError, RuntimeError, AttributeError):  # broken, or another module of that name
        return None
    return lambda text: parser().parse(text)
