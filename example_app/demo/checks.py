"""Whether the answers are right: judged after the load, so that judging costs the server nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from example_app.demo.failure import DemoFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from example_app.demo.load import Answers
    from example_app.schemas import Prediction

_Expected = TypeVar("_Expected")

_MINIMUM_RIGHT = 0.95
# Batches of different sizes add up in different orders.
_TOLERANCE = 1e-3


def check_digits(answers: Answers, expected: Sequence[Prediction], labels: Sequence[int]) -> None:
    """Each digit must be the model's own answer to that image, and nearly all of them the true digit."""
    _check("/classify", answers, expected, _same_digit)
    right = [expected[index].digit == labels[index] for index in answers]
    if sum(right) < _MINIMUM_RIGHT * len(right):
        raise DemoFailed(
            f"/classify named {sum(right)} of {len(right)} digits rightly, less than {_MINIMUM_RIGHT:.0%}.",
            "Delete example_app/.cache so that the model is trained anew.",
        )


def check_rankings(answers: Answers, expected: Sequence[list[int]]) -> None:
    """Each ranking must list the items that the catalogue gives for that customer, in order."""
    _check("/rank", answers, expected, _same_items)


def check_embeddings(answers: Answers, expected: Sequence[NDArray[np.float32]]) -> None:
    """Each embedding must be the model's own, number by number."""
    _check("/embed", answers, expected, _same_numbers)


def _same_digit(answer: Any, wanted: Prediction) -> bool:
    probability: float = answer["probabilities"][wanted.digit]
    return bool(answer["digit"] == wanted.digit and abs(probability - wanted.probability) < _TOLERANCE)


def _same_items(answer: Any, wanted: list[int]) -> bool:
    return [recommendation["item"] for recommendation in answer["recommendations"]] == wanted


def _same_numbers(answer: Any, wanted: NDArray[np.float32]) -> bool:
    numbers = np.asarray(answer["embeddings"], dtype=np.float32)
    return numbers.shape == wanted.shape and np.allclose(numbers, wanted, _TOLERANCE, _TOLERANCE)


def _check(
    path: str, answers: Answers, expected: Sequence[_Expected], same: Callable[[Any, _Expected], bool]
) -> None:
    if not answers:
        raise DemoFailed(f"{path} answered no request in the time given.", "Give more time with --seconds.")
    for index, bodies in answers.items():
        for body in bodies:
            if not _is_right(body, expected[index], same):
                raise DemoFailed(
                    f"{path} answered request {index} with {_shortened(body.decode(errors='replace'))} "
                    f"instead of {_shortened(str(expected[index]))}.",
                    "The server mixes up or spoils its answers: run `make test`, and report its output.",
                )


def _is_right(body: bytes, wanted: _Expected, same: Callable[[Any, _Expected], bool]) -> bool:
    try:
        return same(json.loads(body), wanted)
    except (IndexError, KeyError, TypeError, ValueError):  # an answer of another shape
        return False


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
