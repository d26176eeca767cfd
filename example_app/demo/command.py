"""The demo from the first line to the last."""

from __future__ import annotations

import json
import signal
from argparse import ArgumentParser
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from example_app.demo.comparison import compare
from example_app.demo.failure import DemoFailed
from example_app.demo.report import as_json, markdown, table
from example_app.demo.workloads import workloads
from example_app.model import cache_directory, classifier
from example_app.training import TrainingFailed

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from example_app.demo.load import Workload
    from example_app.demo.report import Comparison

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        with _sigterm_as_interrupt():
            _run(console, options)
    except DemoFailed as failure:
        console.print(
            f"\n[bold red]The demo failed.[/] {escape(failure.happened)}", highlight=False, soft_wrap=True
        )
        console.print(f"[bold]What to do:[/] {escape(failure.remedy)}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted; no server is left running.")
        return _INTERRUPTED
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m example_app.demo", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="how long to measure each endpoint in each mode"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="PATH", help="also write the table there, as Markdown"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write every figure there, as JSON")
    return parser


def _run(console: Console, options: Namespace) -> None:
    prepared = _prepare(console)
    comparisons, memory_mb = compare(console, prepared, options.seconds)
    _conclude(console, comparisons, memory_mb)
    _write(options, comparisons, memory_mb)


def _prepare(console: Console) -> tuple[Workload, ...]:
    with console.status("loading the model (the first run trains it, in seconds)"):
        try:
            model = classifier()
        except TrainingFailed as error:
            raise DemoFailed("The model could not be trained.", str(error)) from error
        prepared = workloads(model)
    console.print(
        f"Model: {model.accuracy:.1%} of the held-out digits right, kept in {cache_directory()}",
        highlight=False,
    )
    return prepared


def _conclude(
    console: Console, comparisons: Sequence[Comparison], memory_mb: dict[str, float | None]
) -> None:
    console.print(table(comparisons))
    if all(memory_mb.values()):
        console.print(
            f"Memory after the load: {memory_mb['stock']:.0f} → {memory_mb['plugin']:.0f} MB.",
            highlight=False,
        )
    console.print("Serve it yourself: [bold]make serve[/], then open http://127.0.0.1:8000")


def _write(options: Namespace, comparisons: Sequence[Comparison], memory_mb: dict[str, float | None]) -> None:
    try:
        if options.markdown:
            options.markdown.write_text(markdown(comparisons), encoding="utf-8")
        if options.json:
            options.json.write_text(
                json.dumps(as_json(comparisons, memory_mb), indent=2) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise DemoFailed(
            f"The results could not be written: {error}.", "Name a file in a writable directory."
        ) from error


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the servers too, as Ctrl-C does."""

    # By way of SIGINT, which asyncio turns into a cancellation; an exception raised here could get lost.
    def interrupt(_signal: int, _frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    on_sigint = signal.signal(signal.SIGINT, signal.default_int_handler)
    on_sigterm = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
        signal.signal(signal.SIGINT, on_sigint)
