"""BentoML with adaptive batching."""

from __future__ import annotations

import os

import bentoml
import numpy as np
import torch
from mlp import mlp
from numpy.typing import NDArray


@bentoml.service(workers=int(os.environ["WORKERS"]), logging={"access": {"enabled": False}})
class Model:
    def __init__(self) -> None:
        self.model = mlp()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    @torch.inference_mode()
    def predict(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.model(torch.from_numpy(np.asarray(inputs, np.float32))).numpy()
