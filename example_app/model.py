"""The digit classifier: trained at the first start, then loaded from a file."""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from example_app.network import DARKEST, PIXELS, DigitNetwork
from example_app.schemas import Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Images = Sequence[Sequence[int]]

CACHE_VARIABLE = "EXAMPLE_APP_CACHE"
_FILE = "digits-1.pt"  # count up when the network or its training changes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """Names the digit on 8x8 grey images given as rows of 64 values from 0 to 16."""

    network: DigitNetwork
    accuracy: float

    def classify(self, images: Images) -> list[Prediction]:
        """Return one prediction per image."""
        with torch.inference_mode():
            probabilities = self.network(_tensor(images)).softmax(dim=1)
        return [_prediction(row) for row in probabilities.tolist()]

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return one row of 128 activations per image."""
        with torch.inference_mode():
            embeddings: NDArray[np.float32] = self.network.embed(_tensor(images)).numpy()
        return embeddings


@cache
def classifier() -> Classifier:
    """Return the process's classifier; the first call loads it, or trains it if no file is there yet."""
    return load_or_train(cache_directory())


def cache_directory() -> Path:
    """Return where the trained model is kept: ``$EXAMPLE_APP_CACHE``, else beside this file."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(__file__).parent / ".cache"


def load_or_train(directory: Path) -> Classifier:
    """Return the classifier kept in ``directory``, training and keeping it when there is none."""
    path = directory / _FILE
    if not path.exists():
        return _train(path)
    try:
        return _load(path)
    except (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        _log.warning("Cannot read the model in %s (%s): training it anew.", path, error)
        return _train(path)


def _train(path: Path) -> Classifier:
    # Only the first start pays for importing scikit-learn.
    from example_app.training import train  # noqa: PLC0415

    network, accuracy = train()
    _log.info("Trained the digit classifier: %.1f %% on held-out digits.", 100 * accuracy)
    _save({"state": network.state_dict(), "accuracy": accuracy}, path)
    return Classifier(network, accuracy)


def _load(path: Path) -> Classifier:
    kept = torch.load(path, weights_only=True)
    network = DigitNetwork()
    network.load_state_dict(kept["state"])
    network.eval()
    return Classifier(network, kept["accuracy"])


def _save(kept: dict[str, Any], path: Path) -> None:
    """Write beside ``path`` and rename, so that another worker never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            written = Path(directory) / path.name
            torch.save(kept, written)
            written.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        _log.warning(
            "Cannot keep the model in %s (%s): every start will train it. Set %s to a writable directory.",
            path.parent,
            error,
            CACHE_VARIABLE,
        )


def _tensor(images: Images) -> torch.Tensor:
    rows = np.asarray(images, dtype=np.float32).reshape(-1, PIXELS)
    return torch.from_numpy(rows / DARKEST)


def _prediction(probabilities: list[float]) -> Prediction:
    probability = max(probabilities)
    return Prediction(
        digit=probabilities.index(probability), probability=probability, probabilities=probabilities
    )
