"""What every test shares: both event loops, and a process left as it was found."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import thread as executors
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from anyio._backends import _asyncio as anyio_asyncio

from asgi_mlperf.host import libraries
from asgi_mlperf.host.environment import COUNTS

# The same inputs in every run; --hypothesis-profile=default looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def process_state() -> dict[str, Any]:
    """Everything process-wide that the plugin may touch."""
    return {
        "gc thresholds": gc.get_threshold(),
        "gc enabled": gc.isenabled(),
        "gc callbacks": [
            callback for callback in gc.callbacks if not callback.__module__.startswith("hypothesis.")
        ],
        "gc frozen": gc.get_freeze_count() > 1_000,
        "Thread.start": threading.Thread.start,
        "WorkItem.run": vars(executors._WorkItem)["run"],
        "AnyIO's threads": vars(anyio_asyncio.AsyncIOBackend)["run_sync_in_worker_thread"],
        "CPUs": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "native threads": {library.key: library.get() for library in libraries.loaded()},
        "variables": {name: os.environ.get(name) for name in COUNTS},
        "switch interval": sys.getswitchinterval(),
        "log records": logging.getLogRecordFactory(),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
    }


@pytest.fixture(autouse=True)
def process_as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("ASGI_MLPERF_")]:
        monkeypatch.delenv(name)
    before = process_state()
    yield
    monkeypatch.undo()
    after = process_state()
    # A library that the test was the first to load has no count from before.
    for library in after["native threads"].keys() - before["native threads"].keys():
        del after["native threads"][library]
    assert after == before


@pytest.fixture
def collector_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without collecting: in a process of many tests each full collection takes its time."""
    monkeypatch.setenv("ASGI_MLPERF_GC__MODE", "off")


@pytest.fixture
def untraced() -> Iterator[None]:
    """Without coverage: many thousand steps take several times as long where each line is noted."""
    own, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    sys.settrace(own)
    threading.settrace(of_threads)


@pytest.fixture
def slots_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Claim no worker slot that a test in a process beside this one wants: to the plugin both are workers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
