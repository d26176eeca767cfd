"""The network: a residual convolutional classifier of 8x8 grey images, small enough to train in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

PIXELS = 64
DARKEST = 16
CLASSES = 10
EMBEDDING = 128
_CHANNELS = 32


class DigitNetwork(nn.Module):
    """Maps rows of 64 values from 0 to 1 to one score per digit."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            *_convolution(1, _CHANNELS),
            nn.ReLU(),
            *(_Residual(_CHANNELS) for _ in range(3)),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(EMBEDDING, CLASSES)

    def embed(self, images: Tensor) -> Tensor:
        """Return the activations before the last layer, 128 per image."""
        embeddings: Tensor = self.body(images)
        return embeddings

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embed(images))
        return scores


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features + self.body(features))


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
