from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _collector_as_found(collector_as_found: None) -> None:
    """These tests are about something else."""
