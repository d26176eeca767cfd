from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from example_app.demo import command
from example_app.demo.failure import DemoFailed
from example_app.demo.load import Measured, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class QuickServer:
    """A server that is up, and whose load is made up."""

    base_url = "http://127.0.0.1:1"

    def memory_mb(self) -> float | None:
        return None

    def raise_if_ended(self) -> None:
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, prepared: tuple[Workload, ...]) -> list[bool]:
    """Let the demo run without servers; return the modes that it asked for."""
    modes: list[bool] = []

    @contextmanager
    def serving(*, plugin: bool) -> Iterator[QuickServer]:
        modes.append(plugin)
        yield QuickServer()

    async def send(_base_url: str, workload: Workload, **_options: object) -> Measured:
        return Measured(seconds=1.0, latencies_s=[0.001 if modes[-1] else 0.004])

    unchecked = [Workload(w.path, w.connections, w.bodies, lambda _answers: None) for w in prepared]
    monkeypatch.setattr(command, "serving", serving)
    monkeypatch.setattr(command, "send", send)
    monkeypatch.setattr(command, "workloads", lambda _model: tuple(unchecked))
    return modes


def test_it_measures_the_stock_app_then_the_plugin_and_prints_the_table(
    quick: list[bool], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main(["--markdown", str(tmp_path / "t.md"), "--json", str(tmp_path / "t.json")]) == 0
    assert quick == [False, True]
    printed = capsys.readouterr().out
    for expected in ("/classify (32)", "/rank (8)", "/embed (12)", "4.0 → 1.0 (4.0x)", "make serve"):
        assert expected in printed
    assert (tmp_path / "t.md").read_text(encoding="utf-8").count("4.0 → 1.0 (4.0x)") == 6
    assert (tmp_path / "t.json").exists()


def test_results_that_cannot_be_written_say_so(
    quick: list[bool], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main(["--json", str(tmp_path / "missing" / "t.json")]) == 1
    assert "could not be written" in capsys.readouterr().out


def test_a_failed_step_says_what_happened_and_what_to_do(
    quick: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_arguments: object, **_options: object) -> Measured:
        raise DemoFailed("The line [is] cut.", "Mend the line.")

    monkeypatch.setattr(command, "send", fail)
    assert command.main([]) == 1
    printed = capsys.readouterr().out
    assert "The demo failed. The line [is] cut." in printed
    assert "What to do: Mend the line." in printed


def test_an_interrupt_ends_the_demo_with_its_own_code(
    quick: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measure", interrupt)
    assert command.main([]) == 130
    assert "Interrupted" in capsys.readouterr().out
