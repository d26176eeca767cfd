"""The files through which prometheus-client adds up the metrics of several workers, kept clean.

Its multi-process mode asks users to empty the directory before a start and to report workers that died. Both
are done here, under a lock, as workers start at the same time: each notes whose worker it is, so that what a
server left behind that is gone can be told from the counts of a worker that was replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import values

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks, and no such fleets of workers
    fcntl = None  # type: ignore[assignment] # checked where it is used

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILE = re.compile(r"^(?P<kind>.+)_(?P<pid>\d+)\.db$")
_LOCK = "asgi-mlperf.lock"


def several_processes() -> bool:
    """Say whether prometheus-client adds up the metrics of several processes.

    It asks its variable when it is imported, and so it stays.
    """
    return values.ValueClass is not values.MutexValue and "PROMETHEUS_MULTIPROC_DIR" in os.environ


class Process(NamedTuple):
    """A process, told from a later one with the same id by when it started."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Look a process up; without /proc, when it started stays unknown."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return cls(pid, "")
        return cls(pid, fields[19])

    @property
    def lives(self) -> bool:
        """Whether it still runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # it is somebody else's
        return not self.started or Process.of(self.pid).started in ("", self.started)


class WorkerFiles:
    """The directory of prometheus-client's files, shared by the workers of a server."""

    def __init__(self, directory: Path | None = None) -> None:
        """Use ``directory``, by default the one that ``PROMETHEUS_MULTIPROC_DIR`` names."""
        self.directory = directory or Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])

    def begin(self) -> None:
        """Note whose worker this is, and clear away what servers left that are gone; may wait."""
        self.directory.mkdir(parents=True, exist_ok=True)
        me = Process.of(os.getpid())
        with self._locked():
            self._note(me.pid).write_text(" ".join(map(str, (*me, *(_supervisor() or me)))))
            self._sweep()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the files as they are inside this block, without the gauges of workers that died."""
        with self._locked():
            self._sweep()
            yield

    def _sweep(self) -> None:
        if fcntl is None:  # pragma: no cover - Windows cannot ask whether a process lives without ending it
            return
        for path in self.directory.iterdir():
            found = _FILE.match(path.name)
            if found is None:
                continue
            pid = int(found["pid"])
            worker, supervisor = self._noted(pid)
            if worker.lives:
                continue
            # The counts of a worker that was replaced go on to count.
            if found["kind"].startswith("gauge_live") or (supervisor is not None and not supervisor.lives):
                path.unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        """Drop the notes of workers that have no files any more."""
        pids = {found["pid"] for path in self.directory.iterdir() if (found := _FILE.match(path.name))}
        for note in self.directory.glob("*.worker"):
            if note.stem not in pids and note.stem.isdigit() and not self._noted(int(note.stem))[0].lives:
                note.unlink(missing_ok=True)

    def _note(self, pid: int) -> Path:
        return self.directory / f"{pid}.worker"

    def _noted(self, pid: int) -> tuple[Process, Process | None]:
        try:
            fields = self._note(pid).read_text().split(" ")
            return Process(int(fields[0]), fields[1]), Process(int(fields[2]), fields[3])
        except (OSError, ValueError, IndexError):
            return Process(pid, ""), None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if fcntl is None:  # pragma: no cover - see the import
            yield
            return
        descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _supervisor() -> Process | None:
    """Return the server process that replaces this one if it dies, None where there is none."""
    parent = os.getppid()
    if multiprocessing.parent_process() is None and not _same_program(parent):
        return None
    return Process.of(parent)


def _same_program(pid: int) -> bool:
    """Say whether another process was forked from the same program, as gunicorn's workers are."""
    with suppress(OSError):
        own, other = (Path(f"/proc/{each}/cmdline").read_bytes() for each in ("self", pid))
        return own == other or (own.startswith(b"gunicorn: ") and other.startswith(b"gunicorn: "))
    return False
