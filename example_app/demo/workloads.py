"""What the demo sends, and what it expects back from a model and a catalogue of its own."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from example_app.catalogue import catalogue
from example_app.demo.checks import check_digits, check_embeddings, check_rankings
from example_app.demo.load import Workload
from example_app.ranking import rank
from example_app.training import held_out_digits, one_native_thread

if TYPE_CHECKING:
    from example_app.model import Classifier

_CUSTOMERS = 100
_RECOMMENDATIONS = 20
_IMAGES_TO_EMBED = 16


def workloads(model: Classifier) -> tuple[Workload, ...]:
    """Return one workload per endpoint."""
    with one_native_thread():
        return _classify(model), _rank(), _embed(model)


def _classify(model: Classifier) -> Workload:
    images, labels = _images(), held_out_digits().labels.tolist()
    return Workload(
        path="/classify",
        connections=32,
        bodies=tuple(_encoded({"pixels": pixels}) for pixels in images),
        check=partial(check_digits, expected=model.classify(images), labels=labels),
    )


def _rank() -> Workload:
    customers = catalogue().customers[:_CUSTOMERS]
    rankings = [rank(catalogue(), customer, _RECOMMENDATIONS) for customer in customers]
    return Workload(
        path="/rank",
        connections=8,
        bodies=tuple(
            _encoded({"customer": customer.id, "limit": _RECOMMENDATIONS}) for customer in customers
        ),
        check=partial(
            check_rankings,
            expected=[[best.item for best in ranking.recommendations] for ranking in rankings],
        ),
    )


def _embed(model: Classifier) -> Workload:
    images = _images()
    lists = [images[start : start + _IMAGES_TO_EMBED] for start in range(0, len(images), _IMAGES_TO_EMBED)]
    return Workload(
        path="/embed",
        connections=12,
        bodies=tuple(_encoded({"images": several}) for several in lists),
        check=partial(check_embeddings, expected=[model.embed(several) for several in lists]),
    )


def _images() -> list[list[int]]:
    images: list[list[int]] = held_out_digits().images.int().tolist()
    return images


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
