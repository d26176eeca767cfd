"""Batches whose results come bit by bit: a generator of lists, one entry per item in each."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, cast

from asgi_mlperf.inference.backlog import Item
from asgi_mlperf.inference.batches import Batch
from asgi_mlperf.inference.batching import Batcher
from asgi_mlperf.inference.flow import Flow
from asgi_mlperf.inference.options import runs_on_loop
from asgi_mlperf.inference.results import results_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from asgi_mlperf.inference.executors import Outcome

_ENDS = (StopIteration, StopAsyncIteration)


class StreamItem(Item):
    """One item whose caller takes chunk after chunk; the wait of an ``Item`` is that for the first."""

    __slots__ = ("_arrived", "chunks", "error", "flow", "over")

    def __init__(self, value: Any, *about: Any) -> None:
        """Wait for the chunks of ``value``."""
        super().__init__(value, *about)
        self.chunks: deque[Any] = deque()
        self.over = False
        self.error: BaseException | None = None
        self.flow: Flow | None = None
        self._arrived: asyncio.Future[None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether somebody still takes its chunks."""
        return not (self.left or self.over or self.reason)

    def put(self, chunk: Any) -> None:
        """Keep a chunk for the caller; an exception ends the stream."""
        if self.over:
            return
        if isinstance(chunk, BaseException):
            self.over, self.error = True, None if isinstance(chunk, _ENDS) else chunk
        elif not self.left:
            self.chunks.append(chunk)
        super().settle(None, None)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def settle(self, result: Any, error: BaseException | None) -> None:  # noqa: ARG002 - chunks were delivered
        """End the stream, with ``error`` if there is one."""
        self.put(StopAsyncIteration() if error is None else error)

    def take(self) -> Any:
        """Return the oldest chunk that waits."""
        chunk = self.chunks.popleft()
        self._tell_flow()
        return chunk

    def leave(self) -> None:
        """Take no more."""
        self.left = True
        self.chunks.clear()
        self._tell_flow()

    def _tell_flow(self) -> None:
        if self.flow is not None:
            self.flow.took(self)

    async def more(self) -> None:
        """Wait for a chunk or the end."""
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None


class StreamBatch(Batch):
    """A batch that delivers while it runs, and ends at its next step once nobody takes any more.

    It waits for a caller for whom too many chunks wait (``Flow``).
    """

    _flow: Flow | None = None

    def job(self, values: list[Any]) -> Callable[[], Any]:
        """Return what is run: it passes each list of chunks on."""
        loop, batcher, options = asyncio.get_running_loop(), self._batcher, self._batcher.options
        flow = self._flow = Flow(options.stream_chunks, options.stall_s, self.seat.moved)
        for item in self._items:
            cast("StreamItem", item).flow = flow

        def checked(given: Any) -> list[Any]:
            given = given if options.split is None else options.split(given)
            return results_of(given, len(values), batcher.func)

        def collated() -> Any:
            return values if options.collate is None else options.collate(values)

        def run() -> None:
            self.seat.take()
            with closing(batcher.func(collated())) as generator:
                for given in generator:
                    loop.call_soon_threadsafe(self._deliver, checked(given))
                    flow.wait()
                    if not self._is_wanted():
                        return

        async def run_on_loop() -> None:
            self.seat.take()
            async with aclosing(batcher.func(collated())) as generator:
                async for given in generator:
                    self._deliver(checked(given))
                    await flow.wait_on_loop()
                    if not self._is_wanted():
                        return

        return run_on_loop if runs_on_loop(batcher.func) else run

    def settle(self, items: list[Item], results: Any) -> None:  # noqa: ARG002 - chunks were delivered
        """End each stream."""
        for item in items:
            item.settle(None, None)

    def finish(self, outcome: Outcome) -> None:
        """End each stream, with the error if there is one."""
        super().finish(outcome)
        self._end_flow()

    def fail(self, error: Exception) -> None:
        """End each stream with the error; what still runs ends at its next step."""
        super().fail(error)
        self._end_flow()

    def _end_flow(self) -> None:
        if self._flow is not None:
            self._flow.end()

    def _is_wanted(self) -> bool:
        return any(item.wanted for item in self._items)

    def _deliver(self, chunks: list[Any]) -> None:
        items = cast("list[StreamItem]", self._items)
        for item, chunk in zip(items, chunks, strict=True):
            item.put(chunk)
        self.seat.moved()
        if self._flow is not None:
            self._flow.delivered(items)


class StreamBatcher(Batcher):
    """Feeds one batched generator function."""

    batch_type = StreamBatch
    item_type = StreamItem

    async def stream(self, value: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """Yield the chunks of one item; the deadline is that of the first."""
        item = cast("StreamItem", self.enter(value, timeout_s))
        try:
            with item:
                await item.future
            while True:
                while item.chunks:
                    yield item.take()
                if item.over:
                    if item.error is None:
                        return
                    try:
                        raise item.error
                    finally:
                        item.error = None  # its traceback holds this frame
                await item.more()
        finally:
            item.leave()
