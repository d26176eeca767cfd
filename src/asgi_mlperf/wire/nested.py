"""Nested lists, whole or in pieces, on their way into one array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from asgi_mlperf.wire.casting import refused
from asgi_mlperf.wire.leaves import NAMES, Parts, flatten, rows_to_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asgi_mlperf.wire.pacing import Pace
    from asgi_mlperf.wire.shapes import Shape

MOST_AXES = 32
"""What every NumPy has; 2.0 and later could have 64."""


class Nested:
    """Nested lists of ``depth``, added piece by piece. Every complaint says where in all of them."""

    def __init__(self, depth: int, dtype: np.dtype[Any], shape: Shape, *, finite: bool) -> None:
        """Begin with no lists.

        Raises:
            BodyRefused: deeper than an array can be.
        """
        if depth > MOST_AXES:
            raise refused("shape", "Input is nested too deeply for an array")
        self.depth = depth
        self._dtype = dtype
        self._shape = shape
        self._finite = finite
        self._sizes: list[int | None] = [None] * depth
        self._begun = [0] * depth
        self._done = [0] * depth
        self._parts = Parts(dtype)

    def add(self, value: Any, *, is_plain: bool, opened: int = 0, closed: int = 0) -> None:
        """Take what comes next: lists of which the ``opened`` outermost go on with those of the last piece,
        and the ``closed`` outermost go on in the next one.

        Raises:
            BodyRefused: ragged, of another depth, or not what was declared.
        """  # noqa: D205 - one sentence
        rows = [value]
        if self.depth == 1 and not opened and not closed:
            self._sizes[0] = len(value)  # a single list is never ragged
        else:
            for level in range(self.depth):
                if level:
                    rows = flatten(rows)
                self._count(level, rows, opened - level, is_open=level < closed)
        self._check_depth()
        part = rows_to_array(
            rows if self.depth else [rows], self._dtype, self._leaf, finite=self._finite, is_plain=is_plain
        )
        self._parts.add(part)

    def array(self, pace: Pace) -> NDArray[Any]:
        """The array, once all is added.

        Raises:
            BodyRefused: of another depth.
        """
        if 0 in self._sizes and not self._shape.is_open:
            rest = self._shape.axes[self.depth :]
            self._sizes += [axis if isinstance(axis, int) else 0 for axis in rest]
        if not self._shape.fits_depth(len(self._sizes)):
            raise self._misshapen()
        joined = self._parts.joined(pace)
        return joined if len(self._sizes) == 1 else joined.reshape([size or 0 for size in self._sizes])

    def refuse_next(self) -> NoReturn:
        """Refuse the body because of what stands next in it, which no array can hold."""
        self._check_depth()
        raise refused("type", f"Input should be {NAMES[self._dtype.kind]}", self._leaf(0))

    def _check_depth(self) -> None:
        if 0 not in self._sizes and not self._shape.fits_depth(self.depth):
            raise self._misshapen()

    def _count(self, level: int, rows: list[Any], opened: int, *, is_open: bool) -> None:
        """Check that ``rows`` are lists as long as all others of their level; ends may be parts."""
        end = _end_of_lists(rows)
        lengths = list(map(len, rows if end == len(rows) else rows[:end]))
        if opened > 0 and lengths:
            lengths[0] += self._begun[level] - (opened > 1)  # its first member may go on too
        if is_open and end == len(rows):
            self._begun[level] = lengths.pop()
        if lengths and self._sizes[level] is None:
            self._sizes[level] = lengths[0]
        size = self._sizes[level]
        if lengths.count(size) < len(lengths):  # type: ignore[arg-type] # no lengths, no size
            end = next(at for at, length in enumerate(lengths) if length != size)
        if end < len(rows):
            known = f"a list of {size} like those" if size is not None else "a list like that"
            raise refused(
                "ragged", f"Input should be {known} before it", self._where(level, self._done[level] + end)
            )
        self._done[level] += len(lengths)

    def _leaf(self, at: int) -> tuple[int, ...]:
        return self._where(self.depth, self._parts.size + at)

    def _where(self, level: int, number: int) -> tuple[int, ...]:
        """The indices of the list of this level, or of the leaf, with this number."""
        path = []
        for size in reversed(self._sizes[1:level]):
            number, at = divmod(number, size) if size else (0, number)
            path.append(at)
        return (number, *reversed(path)) if level else ()

    def _misshapen(self) -> Exception:
        sizes = ", ".join("?" if size is None else str(size) for size in self._sizes)
        return refused("shape", f"Input should have shape ({self._shape.text}), not [{sizes}]")


def _end_of_lists(rows: list[Any]) -> int:
    if set(map(type, rows)) == {list}:
        return len(rows)
    return next((at for at, row in enumerate(rows) if type(row) is not list), len(rows))
