"""What a supervisor is told by a real server: a loop that was stuck, and the app's own check."""

from __future__ import annotations

import time

import pytest
from tests.servers.serving import COMMANDS, PATIENCE_S, Server, serving


def until(server: Server, path: str, status: int) -> list[str]:
    """Ask again and again until the answer has this status; return its reasons."""
    deadline = time.monotonic() + PATIENCE_S
    while (response := server.get(path)).status != status:
        assert time.monotonic() < deadline, response
    reasons: list[str] = response.json["reasons"]
    return reasons


@pytest.mark.parametrize("name", ["uvicorn", "hypercorn -k uvloop"])
def test_liveness_is_off_after_the_loop_was_stuck_says_where_and_comes_back(name, tmp_path):
    with serving(COMMANDS[name], tmp_path, environ={"ASGI_MLPERF_HEALTH__LOOP_STUCK_MS": "300"}) as server:
        assert server.get("/livez").body == '{"live":true,"reasons":[]}'
        blocked = server.request("/blocking")
        gate = server.at_gate()
        deadline = time.monotonic() + PATIENCE_S
        while "the event loop is stuck" not in server.output:
            assert time.monotonic() < deadline
        gate.let_through()
        (reason,) = until(server, "/livez", 503)
        assert "the event loop was stuck for" in reason
        assert "served.py" in reason
        assert "in wait_at_gate" in reason
        assert until(server, "/livez", 200) == []
        blocked.close()


def test_the_apps_own_check_turns_readiness_off_and_on_and_liveness_never(tmp_path):
    with serving(
        COMMANDS["uvicorn"], tmp_path, environ={"ASGI_MLPERF_HEALTH__CHECK_CACHE_MS": "0"}
    ) as server:
        assert server.get("/readyz").body == '{"ready":true,"reasons":[]}'
        (tmp_path / "closed").write_text("the index is being rebuilt")
        assert until(server, "/readyz", 503) == ["closed: the index is being rebuilt"]
        assert [server.get(path).status for path in ("/livez", "/startupz")] == [200, 200]
        (tmp_path / "closed").unlink()
        assert until(server, "/readyz", 200) == []
