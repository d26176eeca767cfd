"""The command line: ``asgi-mlperf config``, ``doctor``, ``dashboard``, ``rules`` and ``run``."""

from __future__ import annotations

import argparse
import sys

from asgi_mlperf.cli import config, dashboard, doctor, run
from asgi_mlperf.exceptions import ConfigurationError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 when the settings cannot be used."""
    parser = argparse.ArgumentParser(prog="asgi-mlperf", description="What asgi-mlperf would do here.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command_main, what in (
        ("config", config.main, "show every setting, its value, its default and where the value came from"),
        ("doctor", doctor.main, "examine this machine and say what would be advised"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
        command.set_defaults(run=command_main)
    what = "print a Grafana dashboard of the metrics, as JSON to import"
    command = commands.add_parser("dashboard", help=what, description=what)
    command.set_defaults(run=dashboard.main)
    what = "print Prometheus recording and alerting rules for the metrics"
    command = commands.add_parser("rules", help=what, description=what)
    dashboard.add_rules_arguments(command)
    command.set_defaults(run=dashboard.print_rules)
    what = "start a server with what is read only before the app is there"
    command = commands.add_parser("run", help=what, description=what)
    run.add_arguments(command)
    command.set_defaults(run=run.main)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
