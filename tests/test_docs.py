from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_settings_tables_are_those_of_the_code():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/architecture.md",
        "docs/dashboard.md",
        "docs/tuning.md",
        "benchmarks/README.md",
        "CHANGELOG.md",
    ],
)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_the_example_in_the_readme_runs():
    from fastapi.testclient import TestClient

    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec", dont_inherit=True), names)
    with TestClient(names["app"]) as client:
        assert client.post("/predict", params={"text": "four"}).json() == 4.0


def test_the_readmes_commands_are_the_makefiles():
    commands = set(re.findall(r"`?make ([a-z]+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert [command for command in commands if not re.search(rf"^{command}:", makefile, re.MULTILINE)] == []
