"""Calls a function in other threads before their next step of Python: from 3.12 on, by ``sys.monitoring``.

Events of a single code object also reach the calls of it that are under way. Where a waiting thread goes on
is known from where it is, so events stay on there only: another thread that comes by pays 0.2 µs.
"""

from __future__ import annotations

import dis
import logging
import sys
from contextlib import contextmanager, suppress
from itertools import dropwhile
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

from asgi_mlperf.frames import current_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import CodeType, FrameType

log = logging.getLogger("asgi_mlperf")

_TOOLS = (4, 3)  # the ids that no kind of tool is meant to use
_MOST_LOOKS = 5
_CALL_A_LOOP_OF_C = frozenset({"_target", "run_forever", "run_until_complete"})


@contextmanager
def before_next_step(threads: Collection[int], call: Callable[[], None]) -> Iterator[frozenset[int]]:
    """Have ``call``, which must not raise, run once in each of ``threads`` before its next step of Python.

    Yield those that it may miss: which are in no Python function, or in a C function that calls others until
    it ends, as uvloop's event loop does. Whoever had no next step by the end of this block is left alone.
    """
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore] # since 3.12
    tool = _tool(monitoring) if threads else None
    if tool is None:
        yield frozenset(threads)
        return
    steps = _Steps(monitoring, tool, threads, call)
    try:
        missed = frozenset(threads)
        try:
            missed = steps.expect()
        except Exception:
            log.exception("the next steps of other threads cannot be told")
            steps.close()
        yield missed
    finally:
        steps.close()


def _tool(monitoring: Any) -> int | None:
    for tool in _TOOLS:
        with suppress(ValueError):  # somebody else has it
            monitoring.use_tool_id(tool, "asgi-mlperf")
            return tool
    return None


class _Steps:
    """The threads whose next step is awaited, and the code where it may be."""

    def __init__(
        self, monitoring: Any, tool: int, threads: Collection[int], call: Callable[[], None]
    ) -> None:
        self._monitoring = monitoring
        self._tool: int | None = tool
        self._awaited = set(threads)
        self._call = call
        self._lock = Lock()
        self._watched: dict[int, CodeType] = {}  # by id: codes that look alike are equal
        self._places: dict[int, dict[int, set[int]]] = {}
        self._kept: dict[int, set[int]] | None = None

    def expect(self) -> frozenset[int]:
        """Watch the code of all awaited threads, and return those that may be missed."""
        monitoring = self._monitoring
        monitoring.register_callback(self._tool, monitoring.events.INSTRUCTION, self._step)
        with self._lock:
            for _ in range(_MOST_LOOKS):  # a thread that went on meanwhile may have passed by unseen
                frames = {
                    thread: frame for thread, frame in current_frames().items() if thread in self._awaited
                }
                found = {thread: _next_steps(frame) for thread, frame in frames.items()}
                codes = {id(code): code for places in found.values() for code, _ in places}
                if codes.keys() <= self._watched.keys():
                    break
                for code in codes.values():
                    monitoring.set_local_events(self._tool, code, monitoring.events.INSTRUCTION)
                self._watched |= codes
            self._places = {
                thread: {id(code): offsets for code, offsets in places} for thread, places in found.items()
            }
            missed = {thread for thread in tuple(self._awaited) if _may_be_missed(frames.get(thread))}
            self._narrow()
        return frozenset(missed)

    def close(self) -> None:
        """Await none any more."""
        with self._lock:
            self._awaited.clear()
            self._narrow()

    def _step(self, code: CodeType, offset: int) -> Any:
        """Be called before each instruction of the code that is watched, in whatever thread runs it."""
        thread = get_ident()
        if thread in self._awaited:
            self._awaited.discard(thread)
            self._call()
            with suppress(Exception), self._lock:  # an audit hook's refusal
                self._narrow()
            return None
        kept = self._kept
        return None if kept is None or offset in kept.get(id(code), ()) else self._monitoring.DISABLE

    def _narrow(self) -> None:
        """Watch no more than is needed for those that are still awaited and alive."""
        if self._awaited:
            self._awaited &= current_frames().keys()
        kept: dict[int, set[int]] = {}
        for thread in tuple(self._awaited):
            for code, offsets in self._places.get(thread, {}).items():
                kept.setdefault(code, set()).update(offsets)
        self._kept = kept
        for code in self._watched.keys() - kept.keys():
            self._monitoring.set_local_events(self._tool, self._watched.pop(code), 0)
        if not self._watched and self._tool is not None:
            tool, self._tool = self._tool, None
            with suppress(Exception):  # as above; without events nothing is called
                self._monitoring.register_callback(tool, self._monitoring.events.INSTRUCTION, None)
            self._monitoring.free_tool_id(tool)


def _may_be_missed(frame: FrameType | None) -> bool:
    return frame is None or not _CALL_A_LOOP_OF_C.isdisjoint(frame.f_code.co_names)


def _next_steps(frame: FrameType) -> list[tuple[CodeType, set[int]]]:
    """Return where a thread whose innermost call is ``frame`` goes on: there, or where an exception leads."""
    handlers = _handlers(frame)
    found = [(frame.f_code, _following(frame) | handlers)]
    outer = frame.f_back
    while not handlers and outer is not None:
        handlers = _handlers(outer)
        if handlers:
            found.append((outer.f_code, handlers))
        outer = outer.f_back
    return found


def _following(frame: FrameType) -> set[int]:
    """Return the offsets that may follow the instruction at which ``frame`` is."""
    rest = dropwhile(lambda each: each.offset < frame.f_lasti, dis.get_instructions(frame.f_code))
    here, after = next(rest, None), next(rest, None)
    offsets = {after.offset} if after else set()
    if here and here.opcode in dis.hasjrel:  # a loop's end steps over an instruction or two
        offsets |= {here.argval, here.argval + 2, here.argval + 4}
    return offsets


def _handlers(frame: FrameType) -> set[int]:
    """Return the offset, if there is one, to which an exception leads from where ``frame`` is."""
    entries = vars(dis.Bytecode(frame.f_code))["exception_entries"]
    return {each.target for each in entries if each.start <= frame.f_lasti < each.end}
