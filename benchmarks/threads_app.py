"""What benchmarks/threads.py serves: three models, each behind the ways of calling one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fastapi import FastAPI

from asgi_mlperf import Plugin

plugin = Plugin()
app = FastAPI()

large, small = torch.rand(1000, 1000), torch.rand(256, 256)
image = torch.rand(4, 16, 64, 64)
network = torch.nn.Sequential(
    torch.nn.Conv2d(16, 32, 3),
    torch.nn.ReLU(),
    torch.nn.Conv2d(32, 32, 3),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
).eval()


@torch.inference_mode()
def mm1000() -> float:
    return (large @ large)[0, 0].item()


@torch.inference_mode()
def mm256() -> float:
    return (small @ small)[0, 0].item()


@torch.inference_mode()
def conv() -> float:
    return network(image)[0, 0].item()


def serve(model: Callable[[], float]) -> None:
    async def on_loop() -> float:
        return model()

    async def in_pool() -> float:
        return await plugin.run(model)

    app.get(f"/def/{model.__name__}")(model)
    app.get(f"/async/{model.__name__}")(on_loop)
    app.get(f"/run/{model.__name__}")(in_pool)


for each in (mm1000, mm256, conv):
    serve(each)
plugin.install(app)
