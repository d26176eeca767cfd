"""Where a container's limits stand: the control groups of this process and all their ancestors."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/")


class _Mount(NamedTuple):
    """A mounted hierarchy: what part of it is mounted, where, and which v1 controllers it has."""

    group: PurePosixPath
    directory: Path
    controllers: frozenset[str]


def read(path: Path) -> str | None:
    """Return a small file's stripped text, or None where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def ancestors(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield this process's group directories for ``controller``, innermost first, v1 and v2.

    A limit on any ancestor binds, so a caller takes the tightest. Only what is mounted here can be seen:
    a container sees its own group as the top.
    """
    mounts = list(_mounts(root))
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        wanted = controller if controller in controllers.split(",") else None
        if controllers and not wanted:
            continue
        for mount in mounts:
            if (wanted in mount.controllers) if wanted else not mount.controllers:
                yield from _upwards(mount, PurePosixPath(path))


def _upwards(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    # Outside of what is mounted here ("/.." in a cgroup namespace), the top of the mount is all there is.
    inside = group.relative_to(mount.group).parts if group.is_relative_to(mount.group) else ()
    if ".." in inside:
        inside = ()
    for depth in range(len(inside), -1, -1):
        directory = mount.directory.joinpath(*inside[:depth])
        if directory.is_dir():
            yield directory


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in (read(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split()
        if kind not in {"cgroup", "cgroup2"}:
            continue
        group, point = before.split()[3:5]
        controllers = options.split(",") if kind == "cgroup" else ()
        yield _Mount(PurePosixPath(group), root / point.lstrip("/"), frozenset(controllers))
