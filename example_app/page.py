"""The page at ``/``: what there is to try, with a line to paste for each."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final

from example_app.network import DARKEST

# The first of the held-out digits that is a seven.
# fmt: off
SEVEN: Final = (
     0,  0,  2, 13, 16,  9,  0,  0,
     0,  0, 12, 12,  7, 16,  3,  0,
     0,  1, 14,  3,  0, 16,  4,  0,
     0,  0,  0,  4, 10, 16,  6,  0,
     0,  0,  0, 13, 16, 16,  9,  0,
     0,  0,  0,  5, 13,  1,  0,  0,
     0,  0,  0, 11,  9,  0,  0,  0,
     0,  0,  1, 16,  4,  0,  0,  0,
)
# fmt: on


@dataclass(frozen=True)
class Example:
    """A request to try."""

    path: str
    purpose: str
    body: dict[str, Any]

    def curl(self, base_url: str) -> str:
        """Return a line for a POSIX shell that sends the request to the server at ``base_url``."""
        body = json.dumps(self.body, separators=(",", ":"))
        header = "content-type: application/json"
        return shlex.join(["curl", "-s", "-H", header, "-d", body, base_url.rstrip("/") + self.path])


@dataclass(frozen=True)
class Link:
    """A page to look at."""

    path: str
    purpose: str


EXAMPLES: Final = (
    Example(
        "/classify",
        "Name the digit on an 8x8 image: 64 values from 0 (white) to 16 (black), row by row. "
        "Requests that wait together are answered by one call of the model.",
        {"pixels": SEVEN},
    ),
    Example(
        "/rank",
        "Recommend items to a customer (0 to 7999) from a catalogue held in memory. "
        "Each request makes thousands of short-lived Python objects.",
        {"customer": 7, "limit": 3},
    ),
    Example(
        "/embed",
        "Turn up to 64 images into vectors: the 128 activations before the model's last layer, "
        "written to JSON straight from the array.",
        {"images": [SEVEN]},
    ),
)
LINKS: Final = (
    Link("/docs", "every endpoint, with forms to fill in"),
    Link("/metrics", "what the plugin measures, for Prometheus"),
    Link("/livez", "whether the process is alive"),
    Link("/readyz", "whether it takes requests: not while starting, not while draining"),
)
_PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def index_page(base_url: str) -> str:
    """Return the page, its lines addressed to the server at ``base_url``."""
    return _PAGE.substitute(
        digit=_drawing(SEVEN),
        examples="\n".join(_section(example, base_url) for example in EXAMPLES),
        links="\n".join(_entry(link) for link in LINKS),
    )


def _section(example: Example, base_url: str) -> str:
    return (
        f"<section>\n<h2><span>POST</span> {example.path}</h2>\n<p>{escape(example.purpose)}</p>\n"
        f'<div class="line"><pre><code>{escape(example.curl(base_url))}</code></pre>'
        '<button type="button" hidden>Copy</button></div>\n</section>'
    )


def _entry(link: Link) -> str:
    return f'<li><a href="{link.path.removeprefix("/")}">{link.path}</a> {escape(link.purpose)}</li>'


def _drawing(pixels: tuple[int, ...]) -> str:
    squares = (
        f'<rect x="{place % 8}" y="{place // 8}" width="1" height="1" opacity="{value / DARKEST:.2f}"/>'
        for place, value in enumerate(pixels)
        if value
    )
    return f'<svg viewBox="0 0 8 8" role="img" aria-label="A handwritten seven">{"".join(squares)}</svg>'
