"""Write what is generated: the settings tables of the README and of settings.md, the dashboard, the rules.

``python docs/generate.py`` writes them; with ``--check`` it only says whether they are up to date.
"""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

from asgi_mlperf.cli import tables
from asgi_mlperf.cli.config import shown
from asgi_mlperf.settings import PREFIX, Knob, Settings, knobs
from asgi_mlperf.telemetry.dashboard import grafana, rules

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "settings.md"
DASHBOARD = ROOT / "src" / "asgi_mlperf" / "telemetry" / "dashboard"
MARKED = re.compile(r"(?<=<!-- settings -->\n).*(?=\n<!-- /settings -->)", re.DOTALL)


def reference() -> str:
    """Every setting, a row each."""
    rows = [[f"`{knob.variable}`", knob.takes, _default(knob), knob.description] for knob in knobs()]
    table = tables.markdown(("variable", "takes", "default", "what it rules"), rows)
    return (
        f"# Settings\n\nThe same as `asgi-mlperf config`, which also shows the values in force.\n\n{table}\n"
    )


def summary() -> str:
    """Every setting, a row for each section."""
    rows = [
        [
            f"`{PREFIX}…`" if section == "" else f"`{PREFIX}{section}__…`",
            purpose,
            ", ".join(map(_named, group)),
        ]
        for (section, purpose), group in groupby(knobs(), key=_section)
    ]
    return tables.markdown(("section", "what it rules", "settings = default"), rows)


def _section(knob: Knob) -> tuple[str, str]:
    if len(knob.path) == 1:
        return "", "The plugin as a whole"
    model = Settings.model_fields[knob.path[0]].annotation
    purpose = ((model.__doc__ if model else None) or "").split("\n")[0].rstrip(".")
    return knob.path[0].upper(), re.sub(r"(:\w+:)?`+([^`]*)`+", r"`\2`", purpose)


def _named(knob: Knob) -> str:
    default = shown(knob.default)
    return f"`{knob.path[-1].upper()}`" + (f" = {default}" if default and len(default) < len(PREFIX) else "")


def _default(knob: Knob) -> str:
    return f"`{shown(knob.default)}`" if shown(knob.default) else ""


def main() -> int:
    """Write or check the files; exit status 1 when a check finds one out of date."""
    current = README.read_text()
    wanted = {
        README: MARKED.sub(lambda _: summary(), current),
        REFERENCE: reference(),
        DASHBOARD / "asgi-mlperf.json": grafana.text(),
        DASHBOARD / "asgi-mlperf.rules.yml": rules.text(),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date; run: make docs")
        return int(bool(stale))
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
