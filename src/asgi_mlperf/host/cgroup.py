"""Where a container's limits stand: the control groups of this process and all their ancestors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/")


def read(path: Path) -> str | None:
    """Return a small file's stripped text, or None where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def ancestors(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield this process's group directories for ``controller``, innermost first, v2 and v1.

    A limit on any ancestor binds, so a caller takes the tightest. Directories that do not exist (a
    group path seen from inside another mount namespace) are skipped.
    """
    mounted = root / "sys/fs/cgroup"
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = mounted / "unified" if (mounted / "unified").is_dir() else mounted
        elif controller in controllers.split(","):
            base = mounted / controllers if (mounted / controllers).is_dir() else mounted / controller
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            directory = base.joinpath(*parts[:depth])
            if directory.is_dir():
                yield directory
