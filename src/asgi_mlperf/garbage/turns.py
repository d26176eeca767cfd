"""One worker of a host at a time may stop for a long collection."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks, and no such fleets of workers
    fcntl = None  # type: ignore[assignment] # checked where it is used

if TYPE_CHECKING:
    from collections.abc import Iterator


class HostTurns:
    """A lock file shared by the workers of one user on one host; a crash gives the lock back."""

    def __init__(self, directory: Path | None = None) -> None:
        """Use a file in ``directory``, by default in the system's directory for temporary files."""
        uid = os.getuid() if hasattr(os, "getuid") else 0
        self._path = Path(directory or tempfile.gettempdir()) / f"asgi-mlperf-gc-{uid}.lock"

    @contextmanager
    def take(self) -> Iterator[bool]:
        """Yield whether it is this worker's turn, without waiting; it is where there are no such locks."""
        descriptor = self._open()
        if descriptor is None:
            yield True
            return
        try:
            yield _locked(descriptor)
        finally:
            os.close(descriptor)

    def _open(self) -> int | None:
        if fcntl is None:
            return None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, flags, 0o600)
        except OSError:
            return None


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
