"""What a waiting item costs: microseconds to wait, be dispatched and answered, and bytes while it waits.

The same function and the same number of items, with ever more of them waiting at once: without the garbage
collector, which looks at all that waits each time that it runs, and with the plugin's schedule. About 40 s.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable

import uvloop
from starlette.applications import Starlette

from asgi_mlperf import Batched, Plugin, Settings

ITEMS, ROUNDS = 100_000, 3


def echoing(plugin: Plugin, keys: int) -> Batched[int, int]:
    return plugin.batched(
        lambda items: items,
        executor="inline",
        max_size=32,
        key=(lambda item: item % keys) if keys > 1 else None,
    )


async def microseconds(waiting: int, keys: int = 1, mode: str = "off") -> float:
    """Of the whole way of an item beyond that of a bare future, with ``waiting`` others on the way."""
    plugin = Plugin(Settings(pool={"max_queue": 2 * ITEMS}, gc={"mode": mode}))
    async with plugin.lifespan(Starlette()):
        echo = echoing(plugin, keys)
        if mode == "off":
            gc.disable()
        took = [await _spent(echo, waiting) for _ in range(ROUNDS)]
        bare = [await _spent(_answered, waiting) for _ in range(ROUNDS)]
        gc.enable()
    return min(took) - min(bare)


async def _spent(ask: Callable[[int], Awaitable[int]], waiting: int) -> float:
    begun = time.perf_counter()
    for _ in range(max(1, ITEMS // waiting)):
        await asyncio.gather(*map(ask, range(waiting)))
    return (time.perf_counter() - begun) / ITEMS * 1e6


async def _answered(item: int) -> int:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, item)
    return await future


async def memory(waiting: int = 20_000) -> float:
    """Bytes of an item that waits, with its caller's task and the coroutines in it."""
    plugin = Plugin(Settings(pool={"threads": 1, "max_queue": 2 * waiting}, gc={"mode": "off"}))
    going_on = threading.Event()

    @plugin.batched(executor="thread", max_size=1)
    def held(items: list[int]) -> list[int]:
        going_on.wait(60)
        return items

    async with plugin.lifespan(Starlette()):
        first = asyncio.create_task(held(0))
        await asyncio.sleep(0.1)
        gc.collect()
        tracemalloc.start()
        tasks = [asyncio.create_task(held(item)) for item in range(waiting)]
        await asyncio.sleep(0.2)  # from 5 ms on, each wait has a timer of its own
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        going_on.set()
        await asyncio.gather(first, *tasks, return_exceptions=True)
    return used / waiting


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| waiting | µs an item | µs an item, 100 keys | µs an item, garbage scheduled |")
    print("| ---: | ---: | ---: | ---: |")
    for waiting in (10, 100, 1_000, 10_000, 100_000):
        one, many = (uvloop.run(microseconds(waiting, keys)) for keys in (1, 100))
        scheduled = uvloop.run(microseconds(waiting, mode="scheduled"))
        print(f"| {waiting:,} | {one:.1f} | {many:.1f} | {scheduled:.1f} |")
    print(f"\na waiting item, its caller's task included: {uvloop.run(memory()):.0f} bytes")


if __name__ == "__main__":
    main()
