"""The model that every contender serves: an MLP, 256 → 1024 → 1024 → 10, float32, with the same weights."""

from __future__ import annotations

import torch

WIDTH = 256


def mlp() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 10),
    ).eval()
