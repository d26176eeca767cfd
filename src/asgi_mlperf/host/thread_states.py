"""Calls a function in other threads before their next step of Python: on CPython 3.11, by trace functions.

Python lets a thread set only its own trace function. C may set another's, as debuggers do that attach to a
running process; this is the one file that reaches into the interpreter for it. Nothing is written before the
calling thread's own state was seen to be laid out as expected. The function is set for one step only, and
never over another.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import accumulate, chain, compress, repeat, takewhile, tee
from operator import attrgetter
from threading import get_ident, get_native_id
from typing import TYPE_CHECKING, Any, ClassVar

from asgi_mlperf.frames import collector_off, current_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType

_ADDRESS = ctypes.c_void_p
_TRACE_FUNCTION = ctypes.PYFUNCTYPE(ctypes.c_int, _ADDRESS, _ADDRESS, ctypes.c_int, _ADDRESS)


class _State(ctypes.Structure):
    """How ``struct _ts`` begins in 3.11's cpython/pystate.h."""

    _fields_: ClassVar[Any] = [
        ("previous", _ADDRESS),
        ("following", _ADDRESS),
        ("interpreter", _ADDRESS),
        ("_initialized_to_tracing_what", ctypes.c_int * 7),
        ("_cframe", _ADDRESS),
        ("profile_function", _ADDRESS),
        ("trace_function", _ADDRESS),
        ("profile_object", _ADDRESS),
        ("trace_object", _ADDRESS),
        ("_exceptions", _ADDRESS * 4),
        ("_dict", _ADDRESS),
        ("_gilstate_counter", ctypes.c_int),
        ("_async_exception", _ADDRESS),
        ("thread", ctypes.c_ulong),
        ("native_thread", ctypes.c_ulong),
    ]


@contextmanager
def before_next_step(threads: Collection[int], call: Callable[[], None]) -> Iterator[frozenset[int]]:
    """Have ``call``, which must not raise, run once in each of ``threads`` before its next step of Python.

    Yield those that it misses: which have a trace function of their own, all where this is not the CPython
    that it is for. Whoever had no next step by the end of this block is left alone.
    """
    hook = _hook() if threads else None
    if hook is None:
        yield frozenset(threads)
        return
    try:
        yield frozenset(thread for thread in threads if not hook.set(thread, call))
    finally:
        for thread in threads:
            hook.remove(thread)


@cache
def _hook() -> _Hook | None:
    """Return the one of this process, None where it cannot work; never freed, as threads may hold it."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11):
        return None
    try:
        api = _Api()
    except AttributeError:
        return None
    return _Hook(api) if api.is_as_expected() else None


class _Hook:
    """A trace function that takes itself out of the thread in which it is called."""

    def __init__(self, api: _Api) -> None:
        self._api = api
        self._awaited: dict[int, Callable[[], None]] = {}
        self._function = _TRACE_FUNCTION(self._step)
        self._address = ctypes.cast(self._function, _ADDRESS).value

    def set(self, thread: int, call: Callable[[], None]) -> bool:
        """Have ``call`` run in a thread, if it lives and has no trace function."""
        if not self._api.has(thread, None):
            return False
        frame = current_frames().get(thread)
        if frame is not None:
            frame.f_trace_opcodes = True  # else what follows on the same line would go unseen
        self._awaited[thread] = call
        with suppress(Exception):  # an audit hook's refusal
            if self._api.exchange(thread, None, self._address):
                return True
        self._awaited.pop(thread, None)
        _unmark(frame)
        return False

    def remove(self, thread: int) -> None:
        """Take the function out of a thread that did not call it yet."""
        if self._awaited.pop(thread, None) is not None:
            with suppress(Exception):  # as above; then it takes itself out
                self._api.exchange(thread, self._address, None)
                _unmark(current_frames().get(thread))

    def _step(self, *_: Any) -> int:
        try:
            self._api.unset_own()
            thread = get_ident()
            if call := self._awaited.pop(thread, None):
                _unmark(current_frames()[thread])
                call()
        except BaseException:  # noqa: BLE001, S110 - whatever is thrown into this thread, the app's code cannot take it
            pass
        return 0


def _unmark(frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_trace_opcodes:
            frame.f_trace_opcodes = False
        frame = frame.f_back


class _Api:
    """What is needed of C; AttributeError where it is missing."""

    def __init__(self) -> None:
        self._set_own = _function("PyEval_SetTrace", None, _ADDRESS, _ADDRESS)
        self._own = _function("PyThreadState_Get", _ADDRESS)
        self._here = _function("PyInterpreterState_Get", _ADDRESS)
        self._main = _function("PyInterpreterState_Main", _ADDRESS)
        self._first = _function("PyInterpreterState_ThreadHead", _ADDRESS, _ADDRESS)
        self._following = _function("PyThreadState_Next", _ADDRESS, _ADDRESS)
        self._set_trace = _function("_PyEval_SetTrace", ctypes.c_int, _ADDRESS, _ADDRESS, _ADDRESS)

    def is_as_expected(self) -> bool:
        """Tell whether the calling thread's state is where and as it should be, in the main interpreter."""
        state, trace = _State.from_address(self._own()), sys.gettrace()
        return (
            state.thread == get_ident()
            and state.native_thread == get_native_id()
            and state.interpreter == self._here() == self._main()
            and state.trace_object == (None if trace is None else id(trace))
            and (state.trace_function is None) == (trace is None)
        )

    def unset_own(self) -> None:
        """Take the calling thread's trace function out, inside a call of it."""
        if _is_unaudited():
            self._set_own(None, None)
        else:  # an audit hook's refusal would leave it there; after the call the interpreter looks at this
            _State.from_address(self._own()).trace_function = None

    def has(self, thread: int, function: int | None) -> bool:
        """Tell whether a thread lives and its trace function is this one; False where others audit."""
        if not _is_unaudited():
            return False
        with collector_off():
            return next(self._state(thread, function), None) is not None

    def exchange(self, thread: int, old: int | None, new: int | None) -> bool:
        """Set a thread's trace function to ``new`` if it is ``old``; False if it is not, or if it ended.

        A thread that ends frees its state, for which it needs the GIL. So from the look at a state to its
        change this thread keeps the GIL: a chain of iterators in C has no bytecode between which it could be
        given away, and the collector runs no finalizers meanwhile. Audit hooks would run: with one, False.
        """
        if not _is_unaudited():
            return False
        with collector_off():
            states = self._state(thread, old)
            return next(map(self._set_trace, states, repeat(new), repeat(None)), None) is not None

    def _state(self, thread: int, function: int | None) -> Iterator[int]:
        """Yield the oldest such state: a thread that is started has the ident of the one that starts it."""
        first = map(self._first, (self._main(),))
        walk = takewhile(bool, accumulate(chain(first, repeat(None)), self._following))
        states, looked_at = tee(walk)
        looks = map(attrgetter("thread", "trace_function"), map(_State.from_address, looked_at))
        alike = compress(states, map((thread, function).__eq__, looks))
        return chain.from_iterable(map(partial(deque, maxlen=1), (alike,)))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


def _is_unaudited() -> bool:
    try:
        sys.audit(None)  # type: ignore[arg-type] # which is looked at only if there is a hook to tell
    except TypeError:
        return False
    return True
