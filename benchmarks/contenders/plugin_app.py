"""The same app with one decorator: with stock's own route, and with the plugin's arrays in and out."""

from __future__ import annotations

import os
from typing import Annotated

import numpy as np
import torch
from fastapi import FastAPI
from mlp import mlp
from numpy.typing import NDArray
from pydantic import BaseModel
from tuned import OPTIONS

from asgi_mlperf import Plugin
from asgi_mlperf.wire.bodies import ArrayBody
from asgi_mlperf.wire.routes import ORJSONRoute, parsed

plugin = Plugin()
options = {} if os.environ.get("FASTAPI_DEFAULTS") else OPTIONS
app = FastAPI(**options)
app.router.route_class = ORJSONRoute
model = mlp()

Rows = NDArray[np.float32]


class Features(BaseModel):
    x: list[float]


class Scores(BaseModel):
    y: list[float]


@plugin.batched(max_size=64)
def from_lists(rows: list[list[float]]) -> list[list[float]]:
    return scores(np.array(rows, np.float32)).tolist()


@plugin.batched(max_size=64)
def from_arrays(rows: list[Rows]) -> Rows:
    return scores(np.stack(rows))


@torch.inference_mode()
def scores(rows: Rows) -> Rows:
    return model(torch.from_numpy(rows)).numpy()


@app.post("/arrays")
async def arrays(x: Annotated[Rows, parsed(ArrayBody(np.float32, "256"))]):  # noqa: ANN201 - an array
    return await from_arrays(x)


@app.post("/lists")
async def lists(features: Features) -> Scores:
    return Scores(y=await from_lists(features.x))


plugin.install(app)
