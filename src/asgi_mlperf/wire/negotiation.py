"""Which of the offered media types a client wants most."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_RANGES = 32


class _Range(NamedTuple):
    kind: str
    subtype: str
    quality: float

    def specificity(self, media_type: str) -> int:
        """How exactly this range names ``media_type``; 0 when it does not."""
        kind, _, subtype = media_type.partition("/")
        if (self.kind, self.subtype) == (kind, subtype):
            return 3
        if (self.kind, self.subtype) == (kind, "*"):
            return 2
        return int((self.kind, self.subtype) == ("*", "*"))


def negotiate(accept: str | None, offers: Sequence[str]) -> str | None:
    """The offer that an ``Accept`` header likes best, the first of equals; ``None`` when it likes none.

    No header, or an empty one, accepts everything. Parameters other than ``q`` are not looked at.
    """
    if not accept or not accept.strip():
        return offers[0]
    ranges = [_parse(text) for text in accept.split(",")[:_MOST_RANGES]]
    best = max(offers, key=lambda offer: _quality(ranges, offer))
    return best if _quality(ranges, best) > 0 else None


def _parse(text: str) -> _Range:
    media_type, *parameters = (part.strip().lower() for part in text.split(";"))
    kind, _, subtype = media_type.partition("/")
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            quality = _number(value)
    return _Range(kind, subtype, quality)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 <= number <= 1 else 0.0


def _quality(ranges: list[_Range], offer: str) -> float:
    return max(((r.specificity(offer), r.quality) for r in ranges if r.specificity(offer)), default=(0, 0.0))[
        1
    ]
