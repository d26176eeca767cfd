"""``asgi-mlperf config``: every knob, its value, its default and where the value came from."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from asgi_mlperf.cli import tables
from asgi_mlperf.settings import Settings, knobs

if TYPE_CHECKING:
    import argparse

_LONGEST_CELL = 90


def main(options: argparse.Namespace) -> None:
    """Print the settings as this environment makes them."""
    settings = Settings()
    found = [
        {
            "variable": knob.variable,
            "value": knob.value(settings),
            "default": knob.default,
            "origin": knob.origin(settings, os.environ),
            "takes": knob.takes,
            "description": knob.description,
        }
        for knob in knobs()
    ]
    if options.json:
        print(json.dumps(found, indent=2, default=str))  # secrets, which show as stars
        return
    columns = ("variable", "value", "default", "origin", "description")
    print(tables.plain(columns, [[_short(shown(knob[column])) for column in columns] for knob in found]))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"


def shown(value: Any) -> str:
    """Write a value as an environment variable would hold it; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(shown(part) for part in value)
    return str(value)
