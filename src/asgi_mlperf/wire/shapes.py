"""Shapes as one writes them on paper: ``"n 256"``, ``"... 3"``, ``"2 _"``."""

from __future__ import annotations

import math

from asgi_mlperf.exceptions import ConfigurationError


class Shape:
    """Axes separated by spaces: a number, a name (equal names are equal sizes), ``_`` for any size,
    and at most one ``...`` for any number of axes.
    """  # noqa: D205 - one sentence

    def __init__(self, text: str) -> None:
        """Read ``text``.

        Raises:
            ConfigurationError: an axis is neither a number, a name, ``_`` nor a single ``...``.
        """
        self.text = text
        self.axes = tuple(int(axis) if axis.isdecimal() else axis for axis in text.split())
        names = [axis for axis in self.axes if isinstance(axis, str)]
        if names.count("...") > 1 or not all(name == "..." or name.isidentifier() for name in names):
            raise ConfigurationError(f"shape {text!r}: an axis is a number, a name, _ or at most one ...")
        self.is_open = "..." in names
        self._known = {at: axis for at, axis in enumerate(self.axes) if isinstance(axis, int)}
        self._open = [at for at in range(len(self.axes)) if at not in self._known]
        self._repeats = len(set(names) - {"_"}) < len(names) - names.count("_")
        self._known_size = math.prod(self._known.values())
        self.may_be_flat = self.fits_depth(1)

    def fits_depth(self, depth: int) -> bool:
        """Whether an array of ``depth`` axes may have this shape."""
        return depth >= len(self.axes) - 1 if self.is_open else depth == len(self.axes)

    def fits(self, sizes: tuple[int, ...]) -> bool:
        """Whether an array of these ``sizes`` has this shape."""
        if sizes == self.axes:
            return True
        if self.is_open or self._repeats:
            return self.fits_depth(len(sizes)) and self._fits_named(sizes)
        if len(sizes) != len(self.axes):
            return False
        return all([sizes[at] == axis for at, axis in self._known.items()])  # noqa: C419 - half the time

    def with_size(self, count: int) -> tuple[int, ...] | None:
        """The sizes of ``count`` values in this shape, when at most one axis is open."""
        if not self._open:
            return self.axes if count == self._known_size else None  # type: ignore[return-value] # no names
        if self.is_open or len(self._open) > 1 or not self._known_size or count % self._known_size:
            return None
        size = count // self._known_size
        return tuple([axis if isinstance(axis, int) else size for axis in self.axes])

    def schema(self, items: dict[str, object]) -> dict[str, object]:
        """The JSON schema of nested lists of ``items`` in this shape."""
        if self.is_open:
            return {"type": "array", "items": {}}
        for axis in reversed(self.axes):
            length = {"minItems": axis, "maxItems": axis} if isinstance(axis, int) else {}
            items = {"type": "array", "items": items, **length}
        return items

    def _fits_named(self, sizes: tuple[int, ...]) -> bool:
        named: dict[str, int] = {}
        return all(
            axis == size if isinstance(axis, int) else axis == "_" or named.setdefault(axis, size) == size
            for axis, size in zip(self._spread(len(sizes)), sizes, strict=True)
        )

    def _spread(self, depth: int) -> tuple[int | str, ...]:
        if not self.is_open:
            return self.axes
        at = self.axes.index("...")
        return (*self.axes[:at], *("_",) * (depth - len(self.axes) + 1), *self.axes[at + 1 :])
