"""The dtypes that strangers may name: plain numbers, looked up and never parsed.

NumPy's own parser of dtypes is not made for hostile text: ``np.dtype("2T")`` ends the process in NumPy 2.4.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Final

import numpy as np

PLAIN: Final = [
    np.dtype(code) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
]
"""NumPy's own instances, of native byte order."""


def _spellings(dtype: np.dtype[Any]) -> dict[str, np.dtype[Any]]:
    short, little, big = dtype.str[1:], dtype.newbyteorder("<"), dtype.newbyteorder(">")
    return dict.fromkeys((dtype.name, short, f"<{short}", f"={short}", f"|{short}"), little) | {
        f">{short}": big
    }


NAMED: Final = dict(chain.from_iterable(_spellings(dtype).items() for dtype in PLAIN))
"""From ``float32``, ``f4``, ``<f4``, ``>f4`` and so on to the dtype, little-endian where it says nothing."""
