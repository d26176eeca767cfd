"""Proof that the caps hold: what threads does an op really start, in a thread that has run nothing yet?"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from asgi_mlperf.host.threads import NativeThreadCaps

log = logging.getLogger("asgi_mlperf")

TASKS = Path("/proc/self/task")
_NAME = "mlperf-probe"
_NATIVE_NAMES = frozenset({_NAME, "openmp_worker"})  # Intel's OpenMP names its threads itself


@dataclass(frozen=True)
class Finding:
    """What a fresh thread found while it ran as a task of its own.

    ``width`` is what its caps allowed, ``counts`` what each library said, ``started`` how many OS threads
    each op started: empty where there is no /proc, or neither numpy nor torch is loaded.
    """

    width: int
    counts: Mapping[str, int] = field(default_factory=dict)
    started: Mapping[str, int] = field(default_factory=dict)

    @property
    def library_widths(self) -> dict[str, int]:
        """Threads of an op by library: what it says, or what it was seen to start if that is more."""
        found = dict(self.counts)
        for op, count in self.started.items():
            library = op.partition(" ")[0]
            if count:
                found[library] = max(found.get(library, 0), 1 + count)
        return found

    @property
    def above(self) -> dict[str, int]:
        """The libraries that use more threads than the caps allow."""
        return {library: count for library, count in self.library_widths.items() if count > self.width}


def check(caps: NativeThreadCaps) -> Finding:
    """Run a matrix product and a convolution in a fresh thread; takes milliseconds."""
    findings: list[Finding] = []
    thread = threading.Thread(target=lambda: findings.append(_probe(caps)), name=_NAME, daemon=True)
    thread.start()
    thread.join()
    return findings[0] if findings else Finding(width=sys.maxsize)


@contextmanager
def checking(caps: NativeThreadCaps, publish: Callable[[str, int], None]) -> Iterator[None]:
    """Check beside this block; ``publish`` each library's width, and warn if one is above its cap."""

    def run() -> None:
        try:
            finding = _probe(caps)
        except Exception:
            log.exception("the native thread caps could not be checked")
            return
        for library, count in finding.library_widths.items():
            publish(library, count)
        if finding.above:
            log.warning("%s", complaint(finding))

    thread = threading.Thread(target=run, name=_NAME, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def complaint(finding: Finding) -> str:
    """Say which caps do not hold, and what to do."""
    above = ", ".join(f"{library} {count}" for library, count in finding.above.items())
    return (
        f"native thread caps do not hold: {finding.width} allowed for an op, found {above}. Set "
        f"OMP_NUM_THREADS={finding.width} before the server starts, or start it with asgi-mlperf run"
    )


def _probe(caps: NativeThreadCaps) -> Finding:
    caps.begin()
    try:
        width = caps.thread_width
        started = dict(_started())
        return Finding(width=width, counts=caps.report(), started=started)
    finally:
        caps.end()


def _started() -> Iterator[tuple[str, int]]:
    """Run each op, and count the threads with this thread's name, which a native thread inherits."""
    own = TASKS / str(threading.get_native_id()) / "comm"
    if not own.exists():
        return
    own.write_text(_NAME)
    before = _namesakes()
    for name, op in _ops():
        op()
        after = _namesakes()
        yield name, after - before
        before = after


def _namesakes() -> int:
    return sum(_name(task) in _NATIVE_NAMES for task in TASKS.iterdir())


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except OSError:
        return ""


def _ops() -> Iterator[tuple[str, Callable[[], Any]]]:
    numpy: Any = sys.modules.get("numpy")
    torch: Any = sys.modules.get("torch")
    if hasattr(numpy, "matmul"):
        matrix = numpy.ones((256, 256), numpy.float32)
        yield "numpy matmul", lambda: matrix @ matrix
    if hasattr(torch, "conv2d"):
        tensor, image, kernel = torch.ones(256, 256), torch.ones(1, 16, 32, 32), torch.ones(16, 16, 3, 3)
        yield "torch matmul", lambda: tensor @ tensor
        yield "torch convolution", lambda: torch.conv2d(image, kernel)
