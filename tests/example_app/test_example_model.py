from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from example_app import training
from example_app.model import CACHE_VARIABLE, Classifier, cache_directory, load_or_train
from example_app.network import EMBEDDING, DigitNetwork
from example_app.training import TrainingFailed, accuracy, held_out_digits, training_digits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda: pytest.fail("the kept model was not used"))


def test_at_least_95_percent_of_the_held_out_digits_are_named_rightly(model: Classifier) -> None:
    digits = held_out_digits()
    named = [prediction.digit for prediction in model.classify(digits.images.tolist())]
    right = np.mean(np.asarray(named) == digits.labels.numpy())
    assert right >= 0.95
    assert model.accuracy == pytest.approx(right)


def test_no_held_out_digit_was_learnt_from() -> None:
    learnt = {tuple(image) for image in training_digits().images.tolist()}
    assert not [image for image in held_out_digits().images.tolist() if tuple(image) in learnt]


def test_one_call_for_many_images_answers_as_many_calls_for_one(model: Classifier) -> None:
    images = held_out_digits().images[:8].tolist()
    together = [prediction.probabilities for prediction in model.classify(images)]
    apart = [model.classify([image])[0].probabilities for image in images]
    assert np.allclose(together, apart, atol=1e-5)
    assert model.embed(images).shape == (8, EMBEDDING)


@pytest.mark.usefixtures("_no_training")
def test_the_kept_model_is_loaded_instead_of_trained_again(model: Classifier, cache: Path) -> None:
    image = held_out_digits().images[:1].tolist()
    loaded = load_or_train(cache)
    assert loaded.accuracy == model.accuracy
    assert loaded.classify(image) == model.classify(image)


@pytest.fixture
def spoilt(model: Classifier, cache: Path, tmp_path: Path) -> Path:
    return tmp_path / next(cache.iterdir()).name


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 half a model"])
def test_a_spoilt_file_is_replaced_with_a_warning(
    content: bytes,
    model: Classifier,
    spoilt: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "train", lambda: (model.network, model.accuracy))
    spoilt.write_bytes(content)
    assert load_or_train(spoilt.parent).network is model.network
    assert "training it anew" in caplog.text
    monkeypatch.setattr(training, "train", lambda: pytest.fail("the file was not replaced"))
    assert load_or_train(spoilt.parent).accuracy == model.accuracy


def test_another_worker_never_sees_half_a_file(
    model: Classifier, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(cache.iterdir()).name
    save = torch.save

    def save_watched(kept: object, written: Path) -> None:
        save(kept, written)
        assert not (tmp_path / name).exists()

    monkeypatch.setattr(torch, "save", save_watched)
    monkeypatch.setattr(training, "train", lambda: (model.network, model.accuracy))
    load_or_train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_directory_that_cannot_be_written_costs_a_warning_not_the_start(
    model: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", lambda: (model.network, model.accuracy))
    (tmp_path / "file").touch()
    assert load_or_train(tmp_path / "file").network is model.network
    assert CACHE_VARIABLE in caplog.text


def test_a_network_that_learnt_nothing_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_fit", lambda _network, _digits: None)
    with pytest.raises(TrainingFailed, match="less than 95%"):
        training.train()
    assert accuracy(DigitNetwork(), held_out_digits()) < 0.5


def test_the_environment_says_where_the_model_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_directory().name == ".cache"
