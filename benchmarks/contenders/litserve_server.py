"""LitServe, tuned as its documentation says: batches, one worker, a ZeroMQ queue."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import torch
from mlp import mlp


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = mlp().to(device)

    def decode_request(self, request):  # noqa: ANN001, ANN201 - a type would be parsed
        return torch.tensor(request["x"])

    @torch.inference_mode()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        return {"y": output.tolist()}


if __name__ == "__main__":
    api = Model(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
