"""FastAPI as its documentation writes it: models in and out, and the model called in the endpoint."""

from __future__ import annotations

import torch
from fastapi import FastAPI
from mlp import mlp
from pydantic import BaseModel
from tuned import OPTIONS

app = FastAPI(**OPTIONS)
model = mlp()


class Features(BaseModel):
    x: list[float]


class Scores(BaseModel):
    y: list[float]


@torch.inference_mode()
def scores(features: Features) -> Scores:
    return Scores(y=model(torch.tensor([features.x]))[0].tolist())


@app.post("/async")
async def on_loop(features: Features) -> Scores:
    return scores(features)


@app.post("/def")
def in_thread(features: Features) -> Scores:
    return scores(features)
