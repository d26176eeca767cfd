"""Batches whose results come bit by bit: a generator of lists, one entry per item in each."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, cast

from asgi_mlperf.inference.backlog import Item
from asgi_mlperf.inference.batches import Batch
from asgi_mlperf.inference.batching import Batcher
from asgi_mlperf.inference.options import runs_on_loop
from asgi_mlperf.inference.results import results_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

_ENDS = (StopIteration, StopAsyncIteration)


class StreamItem(Item):
    """One item whose caller takes chunk after chunk; the wait of an ``Item`` is that for the first."""

    __slots__ = ("_arrived", "chunks", "error", "over")

    def __init__(self, value: Any, **about: Any) -> None:
        """Wait for the chunks of ``value``."""
        super().__init__(value, **about)
        self.chunks: deque[Any] = deque()
        self.over = False
        self.error: BaseException | None = None
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
        else:
            self.chunks.append(chunk)
        super().settle(None, None)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def settle(self, result: Any, error: BaseException | None) -> None:  # noqa: ARG002 - chunks were delivered
        """End the stream, with ``error`` if there is one."""
        self.put(StopAsyncIteration() if error is None else error)

    async def more(self) -> None:
        """Wait for a chunk or the end."""
        self._arrived = asyncio.get_running_loop().create_future()
        try:
            await self._arrived
        finally:
            self._arrived = None


class StreamBatch(Batch):
    """A batch that delivers while it runs, and ends at its next step once nobody takes any more."""

    _nobody = False

    def job(self, values: list[Any]) -> Callable[[], Any]:
        """Return what is run: it passes each list of chunks on."""
        loop, batcher, options = asyncio.get_running_loop(), self._batcher, self._batcher.options

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
                    if self._nobody:
                        return

        async def run_on_loop() -> None:
            self.seat.take()
            async with aclosing(batcher.func(collated())) as generator:
                async for given in generator:
                    self._deliver(checked(given))
                    if self._nobody:
                        return

        return run_on_loop if runs_on_loop(batcher.func) else run

    def settle(self, items: list[Item], results: Any) -> None:  # noqa: ARG002 - chunks were delivered
        """End each stream."""
        for item in items:
            item.settle(None, None)

    def _deliver(self, chunks: list[Any]) -> None:
        for item, chunk in zip(self._items, chunks, strict=True):
            cast("StreamItem", item).put(chunk)
        self._nobody = not any(item.wanted for item in self._items)


class StreamBatcher(Batcher):
    """Feeds one batched generator function."""

    batch_type = StreamBatch

    async def stream(self, value: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """Yield the chunks of one item; the deadline is that of the first."""
        item = self.enter(StreamItem, value, timeout_s)
        try:
            await self.pool.result(item)
            while True:
                while item.chunks:
                    yield item.chunks.popleft()
                if item.over:
                    if item.error is None:
                        return
                    try:
                        raise item.error
                    finally:
                        item.error = None  # its traceback holds this frame
                await item.more()
        finally:
            item.left = True
            self.leave(item)
