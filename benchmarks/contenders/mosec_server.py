"""mosec, a Rust front with Python workers; a wait of 1 ms is the shortest that it has."""

from __future__ import annotations

import os
from typing import Any

import torch
from mlp import mlp
from mosec import Server, Worker


class Inference(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    @torch.inference_mode()
    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = self.model(torch.tensor([one["x"] for one in data])).tolist()
        return [{"y": row} for row in rows]


def serve(worker: type[Worker]) -> None:
    server = Server()
    server.append_worker(worker, num=int(os.environ["WORKERS"]), max_batch_size=32, max_wait_time=1)
    server.run()


if __name__ == "__main__":
    serve(Inference)
