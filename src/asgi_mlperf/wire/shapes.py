"""Shapes as one writes them on paper: ``"n 256"``, ``"... 3"``, ``"2 _"``."""

from __future__ import annotations

from typing import NamedTuple

from asgi_mlperf.exceptions import ConfigurationError


class Shape(NamedTuple):
    """Axes separated by spaces: a number, a name (equal names are equal sizes), ``_`` for any size,
    and at most one ``...`` for any number of axes.
    """  # noqa: D205 - one sentence

    text: str
    axes: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ``text``.

        Raises:
            ConfigurationError: an axis is neither a number, a name, ``_`` nor a single ``...``.
        """
        axes = tuple(int(axis) if axis.isdecimal() else axis for axis in text.split())
        wrong = [axis for axis in axes if isinstance(axis, str) and axis != "..." and not axis.isidentifier()]
        if wrong or axes.count("...") > 1:
            raise ConfigurationError(f"shape {text!r}: an axis is a number, a name, _ or at most one ...")
        return cls(text, axes)

    def fits_depth(self, depth: int) -> bool:
        """Whether an array of ``depth`` axes may have this shape."""
        least = len(self.axes) - ("..." in self.axes)
        return depth >= least if "..." in self.axes else depth == least

    def fits(self, sizes: tuple[int, ...]) -> bool:
        """Whether an array of these ``sizes`` has this shape."""
        if not self.fits_depth(len(sizes)):
            return False
        named: dict[str, int] = {}
        return all(
            axis == size if isinstance(axis, int) else axis == "_" or named.setdefault(axis, size) == size
            for axis, size in zip(self._spread(len(sizes)), sizes, strict=True)
        )

    def with_size(self, count: int) -> tuple[int, ...] | None:
        """The sizes of ``count`` values in this shape, when at most one axis is open."""
        known = 1
        for axis in self.axes:
            known *= axis if isinstance(axis, int) else 1
        still_open = [axis for axis in self.axes if not isinstance(axis, int)]
        if "..." in still_open or len(still_open) > 1 or known == 0 or count % known:
            return None
        sizes = tuple(axis if isinstance(axis, int) else count // known for axis in self.axes)
        return sizes if still_open or count == known else None

    def schema(self, items: dict[str, object]) -> dict[str, object]:
        """The JSON schema of nested lists of ``items`` in this shape."""
        if "..." in self.axes:
            return {"type": "array", "items": {}}
        for axis in reversed(self.axes):
            length = {"minItems": axis, "maxItems": axis} if isinstance(axis, int) else {}
            items = {"type": "array", "items": items, **length}
        return items

    def _spread(self, depth: int) -> tuple[int | str, ...]:
        if "..." not in self.axes:
            return self.axes
        at = self.axes.index("...")
        return (*self.axes[:at], *("_",) * (depth - len(self.axes) + 1), *self.axes[at + 1 :])
