"""How large a body will be, guessed before it is encoded, from a few samples of each container."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_SAMPLES = 8
_MEMBERS_PER_SAMPLE = 4
TEXT_PER_BYTE = 2
_LEAF = 8
_LEAVES = {bool, float, int, type(None)}


def weigh(value: Any, samples: int = _SAMPLES) -> float:
    """About how many bytes of JSON ``value`` becomes. Costs a few microseconds, whatever the value."""
    kind = type(value)
    if kind is dict:
        return _weigh_some(value.values(), len(value), samples * _MEMBERS_PER_SAMPLE, samples)
    if kind is list or kind is tuple:
        step = len(value) // (samples // 2 or 1) or 1
        return _weigh_some(value[::step], len(value), samples // 2, samples)
    if kind is str or kind is bytes:
        return len(value)
    size = _attribute(value, "nbytes")
    if isinstance(size, int):
        return size * TEXT_PER_BYTE
    fields = _attribute(value, "__dict__")
    return _LEAF if type(fields) is not dict else weigh(fields, samples)


def _attribute(value: Any, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - a stranger's property: sparse tensors and asyncpg's UUIDs raise
        return None


def _weigh_some(values: Iterable[object], length: int, most: int, samples: int) -> float:
    if not length or not most:
        return length * _LEAF
    weight = 0.0
    for value in islice(values, most):
        weight += _LEAF if type(value) in _LEAVES else weigh(value, samples // 2)
    return weight * length / min(length, most)
