"""Run Starlette's and FastAPI's own test suites without and with the plugin in every app, and compare.

Takes the installed versions: their sdists, which contain the tests, come from PyPI. Everything happens in
a temporary directory with a virtual environment of its own. Exits 1 if a single test fares differently.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
VARIANTS = {
    "installed": "plugin.install(app) when the app is made",
    "installed_last": "plugin.install(app) when the app is complete",
    "wrapped": "lifespan=plugin.wrap(...) and PerfMiddleware",
    "shared": "one plugin for all apps",
    "running": "installed last, and running for every request",
    "disabled": "ASGI_MLPERF_ENABLED=false",
}
DEFAULTS = ("wrapped", "running", "disabled")
PASSIVE = {"stock", "disabled"}
SAME_AS_HERE = (
    "anyio",
    "orjson",
    "prometheus-client",
    "pydantic",
    "pydantic-settings",
    "starlette",
    "threadpoolctl",
)

say = functools.partial(print, flush=True)


@dataclass(frozen=True)
class Suite:
    """A framework, and the dependency group of its pyproject.toml that its tests need."""

    name: str
    group: str
    requirement: str

    @property
    def sdist(self) -> str:
        """Name and version, as the sdist spells them."""
        return f"{self.name}-{version(self.name)}"


SUITES = (
    Suite("starlette", group="dev", requirement="starlette[full]"),
    Suite("fastapi", group="tests", requirement="fastapi[all]"),
)


@dataclass(frozen=True)
class Run:
    """What became of each test, and how often the plugin had a say."""

    outcomes: dict[str, str]
    failures: dict[str, str]
    counts: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        """Sum up."""
        totals = Counter(self.outcomes.values())
        parts = [f"{count} {outcome}" for outcome, count in totals.most_common()]
        return (
            f"{', '.join(parts)}; {self.counts['apps']} apps with the plugin, "
            f"{self.counts['measured']} requests measured ({self.seconds:.0f} s)"
        )


class Failed(Exception):
    """Raised when the suites could not be run at all; says what to do."""


@dataclass(frozen=True)
class Bench:
    """A directory with the unpacked suites and an environment that runs them."""

    directory: Path

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.directory / "venv" / "bin" / "python"

    def set_up(self) -> None:
        """Fetch what is not there yet."""
        for suite in SUITES:
            if not (self.directory / suite.sdist).is_dir():
                self._fetch(suite)
        if not (self.directory / "ready").exists():
            self._install()
        self._command(
            self.python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", PROJECT
        )

    def run(self, suite: Suite, variant: str, tests: list[str] | None = None) -> Run:
        """Run a suite, or some of its tests, with the plugin put in as ``variant`` says."""
        report = self.directory / f"{suite.name}-{variant}{'-again' if tests else ''}.json"
        log = report.with_suffix(".log")
        report.unlink(missing_ok=True)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ASGI_MLPERF_")}
        environ |= {
            "CONFORMANCE_VARIANT": variant,
            "CONFORMANCE_REPORT": str(report),
            "PYTHONPATH": str(HERE),
        }
        options = ("-q", "-p", "no:cacheprovider", "-p", "no:sugar", "-p", "everywhere")
        began = time.monotonic()
        with log.open("w") as output:
            subprocess.run(
                [self.python, "-m", "pytest", *options, *(tests or ["tests"])],
                cwd=self.directory / suite.sdist,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if not report.exists():
            raise Failed(f"pytest broke off; its last words:\n{_tail(log)}")
        return Run(**json.loads(report.read_text(encoding="utf-8")), seconds=time.monotonic() - began)

    def _fetch(self, suite: Suite) -> None:
        requirement = suite.sdist.replace("-", "==")
        say(f"fetching the sdist of {requirement}")
        options = ("--quiet", "--no-deps", "--no-binary", suite.name, "--dest", str(self.directory))
        self._command(Path(sys.executable), "-m", "pip", "download", *options, requirement)
        with tarfile.open(self.directory / f"{suite.sdist}.tar.gz") as archive:
            archive.extractall(self.directory, filter="data")
        shutil.rmtree(self.directory / suite.sdist / suite.name)  # the installed package is what is tested

    def _install(self) -> None:
        say("installing what the suites need")
        venv.create(self.directory / "venv", with_pip=True, clear=True)
        pip = (self.python, "-m", "pip", "install", "--quiet", "--upgrade")
        self._command(*pip, "pip>=25.1")
        needs = [f"{name}=={version(name)}" for name in SAME_AS_HERE]
        for suite in SUITES:
            needs += [f"{suite.requirement}=={version(suite.name)}"]
            needs += ["--group", f"{self.directory / suite.sdist / 'pyproject.toml'}:{suite.group}"]
        self._command(*pip, *needs, PROJECT)
        (self.directory / "ready").touch()

    def _command(self, *command: str | Path) -> None:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            words = " ".join(map(str, command))
            raise Failed(
                f"{words}\n{done.stderr.strip()}\nThis check needs PyPI: see whether it can be reached, and "
                "whether the sdists of these versions still have the dependency groups named in SUITES"
            )


def differences(bench: Bench, suite: Suite, variant: str, stock: Run) -> int:
    """Run a variant, print what differs from stock also when run again by itself, and return how much."""
    run = bench.run(suite, variant)
    say(f"{suite.name}, {variant} ({VARIANTS[variant]}): {run}")
    if variant not in PASSIVE and not (run.counts["apps"] and run.counts["measured"]):
        raise Failed(
            "the plugin was in no app or measured no request: everywhere.py patches the wrong places"
        )
    suspects = _differing(stock, run)
    if not suspects:
        return 0
    known = [test for test in suspects if test in run.outcomes and "::" in test]
    again = bench.run(suite, variant, known) if known else run
    steady = [
        test for test in suspects if test not in known or again.outcomes.get(test) != stock.outcomes.get(test)
    ]
    for test in suspects:
        if test in steady:
            say(f"  differs: {test}: {stock.outcomes.get(test)} -> {run.outcomes.get(test)}")
            say(_indented(run.failures.get(test, "")))
        else:
            say(f"  unsteady: {test}: differed once, but not when run again")
    return len(steady)


def _differing(stock: Run, run: Run) -> list[str]:
    tests = stock.outcomes.keys() | run.outcomes.keys()
    return sorted(test for test in tests if stock.outcomes.get(test) != run.outcomes.get(test))


def _indented(text: str, lines: int = 15) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def compare(bench: Bench, suites: list[Suite], variants: list[str]) -> int:
    """Run everything asked for; return how many tests fared differently."""
    bench.set_up()
    total = 0
    for suite in suites:
        stock = bench.run(suite, "stock")
        say(f"{suite.sdist}, stock: {stock}")
        if "passed" not in stock.outcomes.values():
            raise Failed(f"no test of {suite.sdist} passes without the plugin: what they need is missing")
        total += sum(differences(bench, suite, variant, stock) for variant in variants)
    return total


def arguments() -> Any:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite", action="append", choices=[suite.name for suite in SUITES], help="only this one"
    )
    parser.add_argument(
        "--variant",
        action="append",
        choices=VARIANTS,
        help=f"how the plugin comes in; default: {', '.join(DEFAULTS)}",
    )
    parser.add_argument("--directory", type=Path, help="keep everything here, and use what is there already")
    return parser.parse_args()


def main() -> int:
    """Compare, and say whether any test differs."""
    given = arguments()
    suites = [suite for suite in SUITES if suite.name in (given.suite or suite.name)]
    with tempfile.TemporaryDirectory() as temporary:
        directory = (given.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            total = compare(Bench(directory), suites, given.variant or list(DEFAULTS))
        except Failed as failure:
            say(f"conformance: {failure}")
            return 2
    say(f"{total} tests differ" if total else "every test fares with the plugin as without it")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
