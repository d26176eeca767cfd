"""Threads that wait, and what is called in them."""

from __future__ import annotations

import os
import sys
import threading
import time
from queue import SimpleQueue
from threading import get_ident

_DEADLINE_S = 20


def until(condition):
    """Let others run until ``condition()`` holds, for which it has 20 s."""
    end = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


def frame_of(thread):
    return sys._current_frames()[thread.ident]


class Waiting:
    """A thread that waits in C and then tells, without a call of Python between, what ``look`` returns."""

    def __init__(self, look, *, tracing=None, profiling=None):
        self._look, self._tracing, self._profiling = look, tracing, profiling
        self._orders, self._answers = SimpleQueue(), SimpleQueue()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        sys.settrace(self._tracing)  # a coverage's would stand there
        sys.setprofile(self._profiling)
        self._answers.put(None)
        going_on = True
        while going_on:
            going_on, found = self._orders.get(), self._look()
            self._answers.put(found)

    def __enter__(self):
        self._thread.start()
        self._answers.get()
        until(lambda: frame_of(self).f_lineno == Waiting._run.__code__.co_firstlineno + 6)
        return self

    def __exit__(self, *_):
        self._orders.put(False)
        self._thread.join()

    @property
    def ident(self):
        return self._thread.ident

    def tell(self):
        """Return what the thread finds on its next step."""
        self._orders.put(True)
        return self._answers.get()


class Calls(list[int]):
    """The threads in which ``note`` was called."""

    def note(self):
        self.append(get_ident())
