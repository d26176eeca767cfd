"""An app whose model runs on several native threads while it is imported, before its workers are forked."""

from __future__ import annotations

import os

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_mlperf import Plugin

matrix = torch.ones(600, 600)
convolution = torch.nn.Conv2d(8, 8, 3)
image = torch.ones(4, 8, 64, 64)


@torch.inference_mode()
def model() -> int:
    (torch.tanh(matrix) @ matrix).sum()
    convolution(image)
    return os.getpid()


torch.set_num_threads(2)
model()
plugin = Plugin()


async def on_loop(_: Request) -> JSONResponse:
    return JSONResponse(model())


def in_thread(_: Request) -> JSONResponse:
    return JSONResponse(model())


async def in_pool(_: Request) -> JSONResponse:
    return JSONResponse(await plugin.run(model))


app = Starlette(routes=[Route("/async", on_loop), Route("/def", in_thread), Route("/run", in_pool)])
plugin.install(app)
