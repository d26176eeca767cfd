"""The app that ``overload.py`` serves: a model of matrix products, called as ``OVERLOAD_CONTENDER`` says."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from asgi_mlperf import Plugin

CONTENDER = os.environ["OVERLOAD_CONTENDER"]
PRODUCTS = int(os.environ["OVERLOAD_PRODUCTS"])
THREADS = int(os.environ["OVERLOAD_THREADS"])
SIZE = 512
BOUND = 12 * THREADS  # about half of the clients' patience, at 19 ms a call

WEIGHTS = np.random.default_rng(1).standard_normal((SIZE, SIZE), dtype=np.float32) / SIZE**0.5
calls: list[tuple[int, float, float, float]] = []


class Question(BaseModel):
    """One request; ``number`` tells which."""

    number: int
    features: list[float]


def compute(products: int) -> float:
    """Multiply matrices so often, without the GIL for most of the time."""
    activations = WEIGHTS
    for _ in range(products):
        activations = WEIGHTS @ activations
    return float(activations[0, 0])


def model(question: Question) -> dict[str, float]:
    """Compute, and note which request it was for, when, and the thread's CPU seconds."""
    began, cpu = time.perf_counter(), time.thread_time()
    score = compute(PRODUCTS)
    calls.append((question.number, began, time.perf_counter(), time.thread_time() - cpu))
    return {"score": score}


app = FastAPI()


def def_endpoint() -> None:
    @app.post("/predict")
    def predict(question: Question) -> Any:
        return model(question)


def async_endpoint(run: Callable[[Callable[[Question], Any], Question], Awaitable[Any]]) -> None:
    @app.post("/predict")
    async def predict(question: Question) -> Any:
        return await run(model, question)


class Bounded:
    """What one writes by hand: a semaphore, a bound on those who wait for it, and 503."""

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(THREADS)
        self.waiting = 0

    async def run(self, func: Callable[[Question], Any], question: Question) -> Any:
        if self.waiting >= BOUND:
            raise HTTPException(503, "overloaded", headers={"Retry-After": "1"})
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        try:
            return await anyio.to_thread.run_sync(func, question)
        finally:
            self.slots.release()


def with_plugin() -> None:
    plugin = Plugin()
    async_endpoint(plugin.run)
    plugin.install(app)


@app.get("/health")
def health() -> dict[str, bool]:
    """Answer as many apps do, from the thread pool of ``def`` endpoints."""
    return {"ok": True}


@app.get("/calls")
async def all_calls() -> Any:
    """Every call of the model that has ended."""
    return calls


if CONTENDER.startswith("asgi-mlperf"):
    with_plugin()
else:

    @app.get("/livez")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    if CONTENDER == "semaphore, bounded":
        async_endpoint(Bounded().run)
    elif CONTENDER == "async, to_thread":
        async_endpoint(anyio.to_thread.run_sync)
    else:
        def_endpoint()
