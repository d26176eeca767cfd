"""The digits that scikit-learn bundles, and the few seconds of training that the model needs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy

from example_app.network import DARKEST, DigitNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

MINIMUM_ACCURACY = 0.95
_EPOCHS = 5
_BATCH = 64
_PEAK_LEARNING_RATE = 5e-3


class TrainingFailed(Exception):  # noqa: N818 - reads as what happened
    """Raised when a trained network is too often wrong to be served."""


@dataclass(frozen=True)
class Digits:
    """Images as rows of 64 values from 0 to 16, and the digit that each one shows."""

    images: Tensor
    labels: Tensor


def training_digits() -> Digits:
    """Return the four fifths that the model learns from."""
    return _split()[0]


def held_out_digits() -> Digits:
    """Return the fifth that the model never sees in training."""
    return _split()[1]


def train() -> tuple[DigitNetwork, float]:
    """Train a network; return it with its accuracy on the held-out digits.

    Raises:
        TrainingFailed: The accuracy stayed below ``MINIMUM_ACCURACY``.
    """
    with one_native_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DigitNetwork()
        _fit(network, training_digits())
        reached = accuracy(network, held_out_digits())
    if reached < MINIMUM_ACCURACY:
        msg = (
            f"Training reached {reached:.1%} on held-out digits, less than {MINIMUM_ACCURACY:.0%}. "
            f"Raise _EPOCHS in {__name__}, or try another version of torch (this is {torch.__version__})."
        )
        raise TrainingFailed(msg)
    return network, reached


def accuracy(network: DigitNetwork, digits: Digits) -> float:
    """Return the share of images whose digit the network names."""
    network.eval()
    with torch.inference_mode():
        named = network(digits.images / DARKEST).argmax(dim=1)
    return float((named == digits.labels).float().mean())


@cache
def _split() -> tuple[Digits, Digits]:
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    learn_images, held_images, learn_labels, held_labels = parts
    return _digits(learn_images, learn_labels), _digits(held_images, held_labels)


def _digits(images: object, labels: object) -> Digits:
    return Digits(torch.tensor(images, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64))


@contextmanager
def one_native_thread() -> Iterator[None]:
    """Let torch compute on one core: threads that share work this small get slow when the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(network: DigitNetwork, digits: Digits) -> None:
    images = digits.images / DARKEST
    steps = _EPOCHS * -(-len(images) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LEARNING_RATE, total_steps=steps)
    network.train()
    for _ in range(_EPOCHS):
        for rows in torch.split(torch.randperm(len(images)), _BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(network(images[rows]), digits.labels[rows]))
            optimizer.step()
            schedule.step()
