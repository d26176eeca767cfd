"""A process that serves and goes on afterwards is as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.servers.serving import serving


@pytest.fixture(params=["asyncio", "uvloop"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The process before, while and after it served."""
    shutil.copy(Path(__file__).with_name("program.py"), tmp_path)
    with serving("program {port} " + request.param, tmp_path) as server:
        assert server.get("/double?number=21").body == "42"
        during = server.get("/process").json
        server.terminate()
        assert server.exit_status() == 0
        return {"during": during, **server.wait_for("served")[0]}


def test_a_process_that_served_is_as_it_was(states):
    after, before = states["after"], states["before"]
    assert after == before
    assert states["during"]["gc thresholds"] != before["gc thresholds"]
    assert states["during"]["gc frozen"]
