"""Captured /proc and /sys trees: each a text file, in which a line ``== path`` begins a file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

TREES = Path(__file__).parent / "trees"


class Witness:
    """Remembers what it was told, and in which thread."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def tell(self, what: str) -> None:
        self.told.append((what, threading.get_ident()))

    def cap_new(self) -> None:
        self.tell("new")

    def call(self, func, /, *args):
        self.tell("begin")
        try:
            return func(*args)
        finally:
            self.tell("end")

    def of(self, thread: int) -> list[str]:
        return [what for what, where in self.told if where == thread]


@pytest.fixture
def witness():
    return Witness()


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Lay a captured tree out, and ``more`` files beside it, and return its root."""

    def lay_out(name: str = "no_cgroup", **more: str) -> Path:
        for part in (TREES / f"{name}.txt").read_text().split("== ")[1:]:
            path, _, text = part.partition("\n")
            write(tmp_path / path, text)
        for path, text in more.items():
            write(tmp_path / path.replace("__", "/"), text)
        return tmp_path

    return lay_out


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
