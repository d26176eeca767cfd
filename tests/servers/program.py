"""Serves the app in this process, and says what the process was like before, and is like after."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
import threading
from typing import Any

import numpy as np  # noqa: F401 - brings a native thread pool
import uvicorn
from anyio._backends import _asyncio as anyio_asyncio
from threadpoolctl import threadpool_info


def state() -> dict[str, Any]:
    return {
        "gc enabled": gc.isenabled(),
        "gc thresholds": gc.get_threshold(),
        "gc callbacks": [repr(callback) for callback in gc.callbacks],
        "gc frozen": gc.get_freeze_count(),
        "signal handlers": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "Thread.run": repr(threading.Thread.run),
        "WorkerThread.run": repr(anyio_asyncio.WorkerThread.run),
        "threads": [thread.name for thread in threading.enumerate()],
        "native threads": [library["num_threads"] for library in threadpool_info()],
    }


def main() -> None:
    served = importlib.import_module("served")
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has served
    before = state()
    uvicorn.Server(uvicorn.Config(served.app, port=int(sys.argv[1]), loop=sys.argv[2])).run()
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(10)  # AnyIO tells its threads to end and does not wait
    served.report("served", before=before, after=state())


main()
