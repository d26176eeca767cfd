"""The model, trained once for all tests, and the app as a browser or a shell would meet it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from example_app.demo.workloads import workloads
from example_app.main import app
from example_app.model import CACHE_VARIABLE, Classifier, classifier
from example_app.training import one_native_thread
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from example_app.demo.load import Workload


@pytest.fixture(scope="module", autouse=True)
def _one_core() -> Iterator[None]:
    with one_native_thread():
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="session")
def model(cache: Path) -> Classifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(cache))
        return classifier()


@pytest.fixture(scope="module")
def prepared(model: Classifier) -> tuple[Workload, ...]:
    return workloads(model)


@pytest.fixture(scope="module")
def client(model: Classifier) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture(autouse=True)
def process_as_found() -> None:
    """Compare nothing: the app, and with it the plugin, runs all through these tests."""
