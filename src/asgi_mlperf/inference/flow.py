"""Back-pressure of a stream: its generator does not run ahead of callers without bound."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Protocol

from asgi_mlperf.exceptions import BatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sized


class Taker(Protocol):
    """One caller of a stream: the chunks that it has not taken yet, and how to end its stream."""

    name: str

    @property
    def chunks(self) -> Sized:
        """What it has not taken yet."""

    @property
    def wanted(self) -> bool:
        """Whether it still takes any."""

    def settle(self, result: None, error: BaseException) -> None:
        """End its stream with ``error``."""


class Flow:
    """Lets a generator run until ``most`` chunks wait for a caller, and on once half of them are taken.

    As many steps again may be on their way from its thread to the event loop. A caller that takes nothing
    for ``stall_s`` seconds meanwhile gets an error in place of what is to come, and holds up nobody any more.
    All but ``wait`` is called on the event loop.
    """

    def __init__(self, most: int, stall_s: float, moved: Callable[[], object]) -> None:
        """Begin with nobody behind; ``moved`` is told when who holds up the generator takes a chunk."""
        self._moved = moved
        self._most = most
        self._stall_s = stall_s
        self._steps = threading.Semaphore(most)
        self._held_back = 0
        self._behind: dict[Taker, float] = {}  # since when each has taken nothing
        self._timer: asyncio.TimerHandle | None = None
        self._room: asyncio.Future[None] | None = None

    def wait(self) -> None:
        """Wait, in the generator's thread and after each step, until it may make the next."""
        self._steps.acquire()

    async def wait_on_loop(self) -> None:
        """Wait until the generator may make its next step."""
        if self._behind:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def delivered(self, takers: Iterable[Taker]) -> None:
        """Learn that one more step was delivered."""
        now = asyncio.get_running_loop().time()
        for taker in takers:
            if not taker.wanted:
                self._behind.pop(taker, None)
            elif len(taker.chunks) >= self._most:
                self._behind.setdefault(taker, now)
        self._held_back += 1
        self._go_on()

    def took(self, taker: Taker) -> None:
        """Learn that a caller took a chunk, or will take no more."""
        if taker not in self._behind:
            return
        self._moved()
        if taker.wanted and len(taker.chunks) > self._most // 2:
            self._behind[taker] = asyncio.get_running_loop().time()
            return
        del self._behind[taker]
        self._go_on()

    def end(self) -> None:
        """Hold nothing back any more."""
        self._behind.clear()
        self._go_on()

    def _go_on(self) -> None:
        if self._behind:
            self._mind()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held_back:
            self._steps.release(self._held_back)
            self._held_back = 0
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _mind(self) -> None:
        if self._timer is None:
            due = min(self._behind.values()) + self._stall_s
            self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for taker, since in list(self._behind.items()):
            if now < since + self._stall_s:
                continue
            del self._behind[taker]
            message = f"a stream of {taker.name} ends, as nothing of it was taken for {self._stall_s:g} s"
            taker.settle(None, BatchError(message))
        self._go_on()
