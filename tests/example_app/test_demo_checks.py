from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from example_app.demo.checks import check_digits, check_embeddings, check_rankings
from example_app.demo.failure import DemoFailed
from example_app.schemas import Prediction

if TYPE_CHECKING:
    from example_app.demo.load import Workload
    from starlette.testclient import TestClient

VECTORS = [np.arange(4, dtype=np.float32).reshape(2, 2)]


def digit(digit: int, probability: float = 0.9) -> Prediction:
    rest = (1 - probability) / 9
    return Prediction(
        digit=digit,
        probability=probability,
        probabilities=[probability if n == digit else rest for n in range(10)],
    )


def answers(*values: Any) -> dict[int, set[bytes]]:
    return {index: {json.dumps(value).encode()} for index, value in enumerate(values)}


def ranking(*items: int) -> dict[str, Any]:
    return {"recommendations": [{"item": item} for item in items]}


def test_the_model_s_own_digits_pass() -> None:
    check_digits(answers(digit(3).model_dump()), [digit(3)], labels=[3])


def test_rounding_in_another_batch_passes() -> None:
    check_digits(answers(digit(3, 0.90001).model_dump()), [digit(3)], labels=[3])


@pytest.mark.parametrize("wrong", [digit(4), digit(3, 0.8), digit(3).model_copy(update={"digit": 4})])
def test_another_caller_s_digit_fails(wrong: Prediction) -> None:
    with pytest.raises(DemoFailed, match="/classify answered request 0"):
        check_digits(answers(wrong.model_dump()), [digit(3)], labels=[3])


def test_one_wrong_answer_among_right_ones_to_the_same_request_fails() -> None:
    both = {0: answers(digit(3).model_dump())[0] | answers(digit(4).model_dump())[0]}
    with pytest.raises(DemoFailed, match="instead of digit=3"):
        check_digits(both, [digit(3)], labels=[3])


def test_a_model_that_is_mostly_wrong_fails() -> None:
    with pytest.raises(DemoFailed, match="named 0 of 1 digits rightly"):
        check_digits(answers(digit(3).model_dump()), [digit(3)], labels=[8])


def test_the_expected_items_in_order_pass() -> None:
    check_rankings(answers(ranking(4, 2)), [[4, 2]])


@pytest.mark.parametrize("wrong", [ranking(2, 4), ranking(4), ranking()])
def test_other_items_or_another_order_fail(wrong: dict[str, Any]) -> None:
    with pytest.raises(DemoFailed, match=r"/rank answered request 0 .* instead of \[4, 2\]"):
        check_rankings(answers(wrong), [[4, 2]])


def test_equal_embeddings_pass() -> None:
    check_embeddings(answers({"embeddings": [[0, 1], [2, 3.000001]]}), VECTORS)


@pytest.mark.parametrize("wrong", [[[0, 1], [2, 3.1]], [[0, 1]], [[None, 1], [2, 3]]])
def test_other_embeddings_fail(wrong: Any) -> None:
    with pytest.raises(DemoFailed, match="/embed answered request 0"):
        check_embeddings(answers({"embeddings": wrong}), VECTORS)


def test_fewer_embeddings_than_images_fail_even_if_all_are_alike() -> None:
    with pytest.raises(DemoFailed, match="/embed answered request 0"):
        check_embeddings(answers({"embeddings": [[1, 1]]}), [np.ones((2, 2), dtype=np.float32)])


def test_no_answers_at_all_fail() -> None:
    with pytest.raises(DemoFailed, match="no request in the time given"):
        check_rankings({}, [[4, 2]])


def test_an_answer_of_another_shape_fails() -> None:
    for body in (b"", b"[]", b"null", b'{"digit": 3}'):
        with pytest.raises(DemoFailed, match="/classify answered request 0"):
            check_digits({0: {body}}, [digit(3)], labels=[3])


def received(client: TestClient, workload: Workload, count: int) -> list[bytes]:
    headers = {"content-type": "application/json"}
    return [
        client.post(workload.path, content=body, headers=headers).content for body in workload.bodies[:count]
    ]


def test_the_app_s_own_answers_pass_every_check(client: TestClient, prepared: tuple[Workload, ...]) -> None:
    for workload in prepared:
        workload.check({index: {body} for index, body in enumerate(received(client, workload, 10))})


def test_swapped_answers_fail_every_check(client: TestClient, prepared: tuple[Workload, ...]) -> None:
    for workload in prepared:
        first, second = received(client, workload, 2)
        with pytest.raises(DemoFailed):
            workload.check({0: {second}, 1: {first}})
