"""What type checkers must know of the public interface: checked by mypy and pyright, never run."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import numpy as np
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.routing import Route

from asgi_mlperf import Batched, PerfMiddleware, Plugin, Settings
from asgi_mlperf.wire.bodies import ArrayBody

plugin = Plugin(Settings(workers=2, pool={"threads": 2}))  # pyright: ignore[reportArgumentType] # pydantic converts
starlette_app = Starlette(lifespan=plugin.lifespan)
starlette_app.add_middleware(PerfMiddleware, plugin=plugin)
fastapi_app = FastAPI(lifespan=plugin.wrap(None))
fastapi_app.add_middleware(PerfMiddleware, plugin=plugin)
plugin.install(fastapi_app)
small = plugin.pool("small", threads=1)


def score(text: str, weight: float) -> float:
    return len(text) * weight


@plugin.batched
def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


@plugin.batched(max_size=8)
def embed(items: list[list[float]]) -> np.ndarray:
    return np.array(items)


@plugin.batched(max_size=8, executor="thread", pool=small, retry="bisect")
def classify(items: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(items)


@plugin.batched(key=len, cost=len, max_cost=4_096.0)
def tokens(items: list[str]) -> list[int]:
    return [len(item) for item in items]


@plugin.batched
def doubled(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(rows) * 2


row = ArrayBody(np.float32, "256")
Starlette(routes=[Route("/doubled", row.endpoint(doubled), methods=["POST"])])
FastAPI(routes=[Route("/doubled", row.endpoint(doubled), methods=["POST"])])
row.endpoint(tokens)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@plugin.batched
async def remote(items: list[int]) -> list[str]:
    return [str(item) for item in items]


@plugin.batched(executor="inline")
async def remote_too(items: list[int]) -> list[str]:
    return [str(item) for item in items]


def stacked(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(rows)


def rows_of(output: dict[str, list[int]]) -> list[int]:
    return output["rows"]


@plugin.batched(collate=stacked)
def totals(rows: NDArray[np.float32]) -> list[float]:
    return [float(total) for total in rows.sum(axis=1)]


@plugin.batched(collate=stacked, split=rows_of)
def best(rows: NDArray[np.float32]) -> dict[str, list[int]]:
    return {"rows": [int(row) for row in rows.argmax(axis=1)]}


@plugin.batched
def words(items: list[str]) -> Iterator[list[str]]:
    yield items


@plugin.batched(max_size=4)
async def words_too(items: list[str]) -> AsyncIterator[list[str]]:
    yield items


class Model:
    @plugin.batched(max_size=8)
    def predict(self, items: list[str]) -> list[int]:
        return [len(item) for item in items]

    @plugin.batched(max_size=8)
    async def ask(self, items: list[str]) -> list[int]:
        return [len(item) for item in items]

    @plugin.batched(max_size=8)
    def stream(self, items: list[str]) -> Iterator[list[int]]:
        yield [len(item) for item in items]


@plugin.warmup
async def warm_up() -> None:
    await lengths("a")


async def use() -> None:
    assert_type(await plugin.run(score, "a", 2.0), float)
    assert_type(await plugin.run(score, "a", 2.0, timeout=1.0), float)
    assert_type(lengths, Batched[str, int])
    assert_type(await lengths("a"), int)
    assert_type(await classify(torch.ones(1), timeout=1.0), torch.Tensor)
    assert_type(await tokens("a"), int)
    assert_type(await remote(1), str)
    assert_type(await remote_too(1), str)
    assert_type(await totals(np.ones(3, np.float32)), float)
    assert_type(await best(np.ones(3, np.float32)), int)
    assert_type(await Model().predict("a"), int)
    assert_type(await Model().ask("a"), int)
    async for word in words("a b"):
        assert_type(word, str)
    async for word in words_too("a b"):
        assert_type(word, str)
    async for length in Model().stream("a b"):
        assert_type(length, int)
    await embed([1.0])
    await plugin.run(score, "a")  # type: ignore[arg-type] # an argument is missing
    await lengths(3)  # type: ignore[arg-type] # not the item's type
    plugin.batched(executor="process")  # type: ignore[call-overload] # not an executor


@plugin.check
async def database() -> bool:
    return True


@plugin.check(name="index", timeout=0.5)
def index() -> str | None:
    return None


assert_type(index(), str | None)
