"""What the type checker must know of the public interface: checked by mypy, never run."""

from typing import assert_type

import numpy as np
import torch
from fastapi import FastAPI
from starlette.applications import Starlette

from asgi_mlperf import PerfMiddleware, Plugin, Settings

plugin = Plugin(Settings(workers=2, pool={"threads": 2}))
starlette_app = Starlette(lifespan=plugin.lifespan)
starlette_app.add_middleware(PerfMiddleware, plugin=plugin)
fastapi_app = FastAPI(lifespan=plugin.wrap(None))
fastapi_app.add_middleware(PerfMiddleware, plugin=plugin)
plugin.install(fastapi_app)


def score(text: str, weight: float) -> float:
    return len(text) * weight


@plugin.batched
def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


@plugin.batched(max_size=8)
def embed(items: list[list[float]]) -> np.ndarray:
    return np.array(items)


@plugin.batched(max_size=8)
def classify(items: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(items)


@plugin.batched
async def remote(items: list[int]) -> list[str]:
    return [str(item) for item in items]


@plugin.warmup
async def warm_up() -> None:
    await lengths("a")


async def use() -> None:
    assert_type(await plugin.run(score, "a", 2.0), float)
    assert_type(await plugin.run(score, "a", 2.0, timeout=1.0), float)
    assert_type(await lengths("a"), int)
    assert_type(await classify(torch.ones(1), timeout=1.0), torch.Tensor)
    assert_type(await remote(1), str)
    await embed([1.0])
    await plugin.run(score, "a")  # type: ignore[arg-type] # an argument is missing
    await lengths(3)  # type: ignore[arg-type] # not the item's type
