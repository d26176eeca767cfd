"""A process whose native ops run in threads from before; prints how many OS threads each started.

``python early_op.py <op> <start>:<wait> …``: how a thread was started, and what it is in at the start.
The op follows in the same function, on the same line where it can.
"""

from __future__ import annotations

import _thread
import asyncio
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

from starlette.applications import Starlette
from tests.host.first_op import OPS, prepare, started_while

from asgi_mlperf import Plugin, Settings

STARTS = {
    "thread": lambda run: threading.Thread(target=run, name="queue-worker").start(),
    "raw": lambda run: _thread.start_new_thread(run, ()),
    "executor": lambda run: ThreadPoolExecutor(1).submit(run),
    "pool": lambda run: (pool := ThreadPool(1), pool.apply_async(run)),
    "traced": lambda run: threading.Thread(target=traced, args=(run,), name="queue-worker").start(),
}
WAITS = {  # what is needed, what the thread does, what ends its wait
    "queue": ("q = queue.Queue()", "q.get(), {op}", "q.put(0)"),
    "simple_queue": ("q = queue.SimpleQueue()", "q.get(), {op}", "q.put(0)"),
    "iterator": ("q = queue.SimpleQueue()", "for _ in iter(q.get, 1): {op}", "q.put(0); q.put(1)"),
    "timeouts": (
        "q = queue.Queue()",
        "while True:\n  try: q.get(timeout=0.01), {op}; break\n  except queue.Empty: pass",
        "q.put(0)",
    ),
    "event": ("e = threading.Event()", "e.wait(), {op}", "e.set()"),
    "sleep": ("go = []", "while not go: time.sleep(0.001)\n{op}", "go.append(0)"),
    "busy": ("go = []", "while not go: pass\n{op}", "go.append(0)"),
    "socket": ("here, there = socket.socketpair()", "there.recv(1), {op}", "here.send(b'.')"),
    "reset": (
        "here, there = socket.socketpair(); there.send(b'.')",
        "try: there.recv(1)\nexcept ConnectionResetError: {op}",
        "here.close()",
    ),
    "timer": (
        "timer = threading.Timer(3600, lambda: {op}); wakes = timer.finished._cond",
        "timer.run()",
        "with wakes: wakes.notify()",
    ),
    "uvloop": (
        "import uvloop; loop = uvloop.new_event_loop()",
        "loop.run_forever()",
        "loop.call_soon_threadsafe(lambda: ({op}, loop.stop()))",
    ),
    "loop": (
        "loop = asyncio.new_event_loop()",
        "loop.run_forever()",
        "loop.call_soon_threadsafe(lambda: ({op}, loop.stop()))",
    ),
}
MODULES = {"queue": queue, "threading": threading, "time": time, "socket": socket, "asyncio": asyncio}


def traced(run: Callable[[], None]) -> None:
    sys.settrace(lambda *_: None)
    run()


class Early:
    """A thread that waits before its op."""

    def __init__(self, op: str, kind: str) -> None:
        start, wait = kind.split(":")
        needed, does, self._wakes = (part.format(op=OPS[op][2]) for part in WAITS[wait])
        self._names = {**prepare(op), **MODULES}
        exec(needed, self._names)
        self._does, self._waits = does, threading.Event()
        self._started = Future[str]()
        self._kept = STARTS[start](self._run)  # a pool ends with the last that holds it
        self._waits.wait()

    def _run(self) -> None:
        self._started.set_result(started_while(self._wait))

    def _wait(self) -> None:
        self._waits.set()
        exec(self._does, self._names)

    async def started(self) -> str:
        """Let it run its op, and return how many threads that started."""
        exec(self._wakes, self._names)
        return await asyncio.wrap_future(self._started)


async def main(op: str, *kinds: str) -> None:
    threads = {kind: Early(op, kind) for kind in kinds}
    async with Plugin(Settings()).lifespan(Starlette()):
        json.dump({kind: await thread.started() for kind, thread in threads.items()}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
