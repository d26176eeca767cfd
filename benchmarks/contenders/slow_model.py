"""One way to batch calls of a model that takes 18 + 0.1·n ms for n items, in process and without a server.

``batching_slow.py`` runs it as a process of its own and reads the figures that it prints as JSON. The model
sleeps, as one on an accelerator lets go of the GIL. Callers either come on their own (open loop, a Poisson
process; a latency counts from when the call should have begun) or ask again after each answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

MAX_SIZE = 32
WINDOW_S = 0.005
FIXED_S, ITEM_S = 0.018, 0.0001
CAPACITY = MAX_SIZE / (FIXED_S + ITEM_S * MAX_SIZE)

Predict = Callable[[int], Awaitable[int]]


class Model:
    """Answers each number with its successor, and keeps the size of every batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.sizes.append(len(items))
        time.sleep(FIXED_S + ITEM_S * len(items))
        return [item + 1 for item in items]


@asynccontextmanager
async def with_plugin(model: Model) -> AsyncIterator[Predict]:
    from fastapi import FastAPI  # noqa: PLC0415 - each way runs in the interpreter that has it

    from asgi_mlperf import Plugin, Settings  # noqa: PLC0415 - see above

    plugin = Plugin(Settings(pool={"threads": 1}))

    @plugin.batched(max_size=MAX_SIZE)
    def predict(items: list[int]) -> list[int]:
        return model(items)

    app = FastAPI()
    plugin.install(app)
    async with app.router.lifespan_context(app):
        yield predict


@asynccontextmanager
async def with_window(model: Model) -> AsyncIterator[Predict]:
    """From the first item on wait 5 ms for others, unless the batch is full before; then run it."""
    waiting: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def predict(item: int) -> int:
        future: asyncio.Future[int] = loop.create_future()
        waiting.put_nowait((item, future))
        return await future

    async def serve() -> None:
        with ThreadPoolExecutor(1) as thread:
            while True:
                batch = await gathered()
                results = await loop.run_in_executor(thread, model, [item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    future.set_result(result)

    async def gathered() -> list[tuple[int, asyncio.Future[int]]]:
        batch = [await waiting.get()]
        over = loop.time() + WINDOW_S
        while len(batch) < MAX_SIZE:
            try:
                async with asyncio.timeout_at(over):
                    batch.append(await waiting.get())
            except TimeoutError:
                break
        return batch

    serving = asyncio.create_task(serve())
    yield predict
    serving.cancel()


@asynccontextmanager
async def with_bentoml(model: Model) -> AsyncIterator[Predict]:
    """BentoML's own dispatcher, as its server sets it up for a batchable method."""
    from bentoml._internal.marshal.dispatcher import CorkDispatcher  # noqa: PLC0415 - see above

    def none() -> None:
        return None

    dispatcher = CorkDispatcher(60_000, MAX_SIZE, fallback=none, get_batch_size=lambda _item: 1)
    yield dispatcher(model)
    dispatcher.shutdown()


WAYS = {"asgi-mlperf": with_plugin, "fixed window of 5 ms": with_window, "BentoML's dispatcher": with_bentoml}


async def open_loop(predict: Predict, rate: float, seconds: float, seed: int) -> list[float]:
    """Call at random moments, ``rate`` a second on average, and return the latencies in seconds."""
    chance, latencies, calls = random.Random(seed), list[float](), set[asyncio.Task[None]]()
    began = time.perf_counter()
    due, over = began, began + seconds

    async def call(at: float, number: int) -> None:
        if await predict(number) != number + 1:
            raise RuntimeError("a caller got the answer of another")
        latencies.append(time.perf_counter() - at)

    while (due := due + chance.expovariate(rate)) < over:
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        calls.add(asyncio.create_task(call(due, len(calls))))
    await asyncio.gather(*calls)
    return latencies


async def closed_loop(predict: Predict, callers: int, seconds: float) -> list[float]:
    """Let each caller ask again after each answer, and return the latencies in seconds."""
    latencies: list[float] = []
    over = time.perf_counter() + seconds

    async def call(number: int) -> None:
        while (began := time.perf_counter()) < over:
            if await predict(number) != number + 1:
                raise RuntimeError("a caller got the answer of another")
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*map(call, range(callers)))
    return latencies


async def run(options: argparse.Namespace) -> dict[str, float]:
    model = Model()
    async with WAYS[options.way](model) as predict:
        for seconds in (options.warm_up_seconds, options.seconds):
            model.sizes.clear()
            began = time.perf_counter()
            if options.callers:
                latencies = await closed_loop(predict, options.callers, seconds)
            else:
                latencies = await open_loop(predict, options.load * CAPACITY, seconds, options.seed)
            took = time.perf_counter() - began
    hundredths = statistics.quantiles(latencies, n=100)
    return {
        "items/s": len(latencies) / took,
        "of the ideal": len(latencies) / took / CAPACITY,
        "mean batch": statistics.mean(model.sizes),
        "p50 ms": 1000 * hundredths[49],
        "p99 ms": 1000 * hundredths[98],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--load", type=float, default=0.5, help="of capacity, open loop")
    parser.add_argument("--callers", type=int, default=0, help="a closed loop of so many instead")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warm-up-seconds", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
