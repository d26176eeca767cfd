"""``asgi-mlperf dashboard`` and ``asgi-mlperf rules``: files for Grafana and Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.telemetry.dashboard import grafana, rules

if TYPE_CHECKING:
    import argparse

_PROMISED = rules.Targets()


def main(_: argparse.Namespace) -> None:
    """Print the dashboard."""
    print(grafana.text(), end="")


def add_rules_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the alerts of a service depend on."""
    command.add_argument(
        "--latency-seconds",
        type=float,
        default=_PROMISED.latency_s,
        help="alert when the p99 of all requests is above (default: %(default)g)",
    )
    command.add_argument(
        "--error-ratio",
        type=float,
        default=_PROMISED.error_ratio,
        help="alert when the share of 5xx is above (default: %(default)g)",
    )


def print_rules(options: argparse.Namespace) -> None:
    """Print the recording and alerting rules. Raises ``ConfigurationError`` for targets nothing can meet."""
    if not options.latency_seconds > 0 or not 0 <= options.error_ratio < 1:
        raise ConfigurationError("--latency-seconds must be above 0, and --error-ratio from 0 to below 1")
    targets = rules.Targets(latency_s=options.latency_seconds, error_ratio=options.error_ratio)
    print(rules.text(targets), end="")
