from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from example_app.demo import command, comparison
from example_app.demo.failure import DemoFailed
from example_app.demo.load import Measured, Workload
from example_app.training import TrainingFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class QuickServer:
    """A server that is up, and whose load is made up."""

    def __init__(self, mode: str) -> None:
        self.base_url = mode

    def memory_mb(self) -> float | None:
        return None

    def raise_if_ended(self, within_s: float) -> None:
        pass


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch, prepared: tuple[Workload, ...]) -> list[str]:
    """Let the demo run without servers; return the modes that were sent load, in order."""
    modes: list[str] = []

    @contextmanager
    def serving(*, plugin: bool) -> Iterator[QuickServer]:
        yield QuickServer("plugin" if plugin else "stock")

    async def send(base_url: str, _workload: Workload, measured: Measured, **_options: object) -> None:
        modes.append(base_url)
        measured.seconds += 1.0
        measured.latencies_s.append(0.001 if base_url == "plugin" else 0.004)

    unchecked = [Workload(w.path, w.connections, w.bodies, lambda _answers: None) for w in prepared]
    monkeypatch.setattr(comparison, "serving", serving)
    monkeypatch.setattr(comparison, "send", send)
    monkeypatch.setattr(command, "workloads", lambda _model: tuple(unchecked))
    return modes


def test_both_modes_take_turns_on_every_endpoint_and_are_compared(
    turns: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main(["--markdown", str(tmp_path / "t.md"), "--json", str(tmp_path / "t.json")]) == 0
    assert turns == ["stock", "plugin", "plugin", "stock"] * 3
    printed = capsys.readouterr().out
    for expected in ("/classify (32)", "/rank (8)", "/embed (12)", "4.0 → 1.0 (4.0x)", "make serve"):
        assert expected in printed
    assert (tmp_path / "t.md").read_text(encoding="utf-8").count("4.0 → 1.0 (4.0x)") == 6
    assert (tmp_path / "t.json").exists()


@pytest.mark.usefixtures("turns")
def test_results_that_cannot_be_written_say_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--json", str(tmp_path / "missing" / "t.json")]) == 1
    assert "could not be written" in capsys.readouterr().out


@pytest.mark.usefixtures("turns")
def test_a_failed_step_says_what_happened_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_arguments: object, **_options: object) -> None:
        raise DemoFailed("The line [is] cut.", "Mend the line.")

    monkeypatch.setattr(comparison, "send", fail)
    assert command.main([]) == 1
    printed = capsys.readouterr().out
    assert "The demo failed. The line [is] cut." in printed
    assert "What to do: Mend the line." in printed


@pytest.mark.usefixtures("turns")
def test_wrong_answers_fail_the_demo(
    monkeypatch: pytest.MonkeyPatch, prepared: tuple[Workload, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "workloads", lambda _model: prepared)
    assert command.main([]) == 1
    assert "/classify answered no request" in capsys.readouterr().out


@pytest.mark.usefixtures("turns")
def test_an_interrupt_ends_the_demo_with_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupt(*_arguments: object, **_options: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(comparison, "send", interrupt)
    assert command.main([]) == 130
    assert "Interrupted" in capsys.readouterr().out


def test_a_model_that_cannot_be_trained_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise TrainingFailed("Training reached 12%.")

    monkeypatch.setattr(command, "classifier", fail)
    assert command.main([]) == 1
    assert "Training reached 12%." in capsys.readouterr().out
