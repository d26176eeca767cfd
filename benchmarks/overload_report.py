"""From what clients and server noted to the figures, tables and plot of ``overload.py``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from goodput_plot import Curve, plot_goodput
from open_loop import BROKEN, GAVE_UP, Request

Figures = dict[str, float]


class Moment(NamedTuple):
    """Seconds on the clock, and CPU seconds of the server, the clients, and everything on the machine."""

    at: float
    server_s: float
    clients_s: float
    machine_s: float


_GRACE_S = 0.01
"""What a departure may take to reach the server's event loop."""


def figures_of(
    requests: Sequence[Request],
    probes: dict[str, Sequence[Request]],
    calls: Sequence[tuple[int, float, float, float]],
    begin: Moment,
    end: Moment,
) -> Figures:
    """Sum up one measurement, from ``begin`` to ``end``."""
    seconds = end[0] - begin[0]
    counted = [request for request in requests if begin[0] <= request.due < end[0]]
    if seconds <= 0 or not counted:
        return {}
    answered = [request.seconds for request in counted if request.status == 200]
    left = {request.number: request.over for request in requests if request.status == GAVE_UP}
    counted_calls = [call for call in calls if begin[0] <= call[2] < end[0]]
    model_cpu_s = sum(cpu for _, _, _, cpu in counted_calls)
    cpu_s = end[1] - begin[1]
    return {
        "offered/s": len(counted) / seconds,
        "goodput/s": len(answered) / seconds,
        "refused/s": _count(counted, 503) / seconds,
        "expired/s": _count(counted, 504) / seconds,
        "gave up/s": _count(counted, GAVE_UP) / seconds,
        "broken/s": _count(counted, BROKEN) / seconds,
        "p50 ms": 1000 * percentile(answered, 0.50),
        "p99 ms": 1000 * percentile(answered, 0.99),
        **{
            f"{path} p99 ms": 1000
            * percentile([r.seconds for r in found if begin[0] <= r.due < end[0]], 0.99)
            for path, found in probes.items()
        },
        "calls/s": len(counted_calls) / seconds,
        "calls under way": sum(ended - began for _, began, ended, _ in counted_calls) / seconds,
        "calls for clients that had left": float(
            sum(began > left[number] + _GRACE_S for number, began, _, _ in calls if number in left)
        ),
        "server CPUs": cpu_s / seconds,
        "server CPUs, model": model_cpu_s / seconds,
        "clients CPUs": (end[2] - begin[2]) / seconds,
        "CPUs of others": (end[3] - begin[3] - (end[2] - begin[2]) - cpu_s) / seconds,
        "clients lag p99 ms": 1000 * percentile([r.sent - r.due for r in counted], 0.99),
    }


def _count(requests: Iterable[Request], status: int) -> int:
    return sum(request.status == status for request in requests)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def capacity_of(one_round: dict[str, Any]) -> float:
    """Return the best that any contender reached in the round."""
    return max(one_round["closed loop/s"], *(taken["goodput/s"] for taken in one_round["taken"]))


def refusing_share(one_round: dict[str, Any], name: str, load: int, cpus: int) -> float:
    """Share of the machine's CPU time spent on refusals.

    What the server spent outside the model, less what it would have for its answers alone, as at 1x.
    """
    found = {taken["load"]: taken for taken in one_round["taken"] if taken["contender"] == name}
    peace, stress = found[min(found)], found[load]
    answering = (peace["server CPUs"] - peace["server CPUs, model"]) / peace["goodput/s"]
    beside = stress["server CPUs"] - stress["server CPUs, model"]
    return float((beside - answering * stress["goodput/s"]) / cpus)


def report(rounds: Sequence[dict[str, Any]], cpus: int) -> str:
    """Return the tables: medians over rounds, with least and most."""
    keys = list(
        dict.fromkeys((taken["contender"], taken["load"]) for one in rounds for taken in one["taken"])
    )
    head = (
        "| load | contender | goodput/s | of capacity, % | refused, % | unanswered, % | p50 ms | p99 ms "
        "| `/livez` p99 ms | `def` health p99 ms | calls for clients that had left |"
    )
    lines = [f"capacity/s: {spread([capacity_of(one) for one in rounds], 1)}", "", head, "|---" * 11 + "|"]
    for name, load in sorted(keys, key=lambda key: key[1]):
        lines.append(_row(rounds, name, load))
    most = max(load for _, load in keys)
    lines += [
        "",
        "| contender | CPUs of the server / of its model / of the clients | refusing, % of all CPU ",
    ]
    lines[-1] += "| lag of the clients, p99 ms |"
    lines.append("|---" * 4 + "|")
    for name in dict.fromkeys(name for name, _ in keys):
        lines.append(_cpu_row(rounds, name, most, cpus))
    return "\n".join(lines)


def _row(rounds: Sequence[dict[str, Any]], name: str, load: int) -> str:
    def over(value: Callable[[dict[str, Any], dict[str, Any]], float], digits: int = 0) -> str:
        return spread([value(one, taken) for one in rounds for taken in _of(one, name, load)], digits)

    cells = [
        f"{load}x",
        name,
        over(lambda _, taken: taken["goodput/s"], 1),
        over(lambda one, taken: 100 * taken["goodput/s"] / capacity_of(one)),
        over(lambda _, taken: 100 * taken["refused/s"] / taken["offered/s"]),
        over(
            lambda _, taken: (
                100 * (taken["expired/s"] + taken["gave up/s"] + taken["broken/s"]) / taken["offered/s"]
            )
        ),
        *(
            over(lambda _, taken, key=key: taken[key])  # type: ignore[misc] # a lambda's default
            for key in (
                "p50 ms",
                "p99 ms",
                "/livez p99 ms",
                "/health p99 ms",
                "calls for clients that had left",
            )
        ),
    ]
    return "| " + " | ".join(cells) + " |"


def _cpu_row(rounds: Sequence[dict[str, Any]], name: str, load: int, cpus: int) -> str:
    taken = [found for one in rounds for found in _of(one, name, load)]
    used = [
        f"{statistics.median(found[key] for found in taken):.2f}"
        for key in ("server CPUs", "server CPUs, model", "clients CPUs")
    ]
    share = spread([100 * refusing_share(one, name, load, cpus) for one in rounds], 1)
    lag = spread([found["clients lag p99 ms"] for found in taken], 1)
    return f"| {name} | {' / '.join(used)} | {share} | {lag} |"


def _of(one_round: dict[str, Any], name: str, load: int) -> list[dict[str, Any]]:
    return [taken for taken in one_round["taken"] if taken["contender"] == name and taken["load"] == load]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def plot(rounds: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw goodput against load, both in capacities."""
    names = dict.fromkeys(taken["contender"] for one in rounds for taken in one["taken"])
    curves = [Curve(name, *_points(rounds, name)) for name in names]
    plot_goodput(curves, path, title="Answered within 500 ms, measured")


def _points(rounds: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    shares: dict[float, list[float]] = {}
    for one in rounds:
        for taken in one["taken"]:
            if taken["contender"] == name:
                shares.setdefault(taken["load"], []).append(taken["goodput/s"] / capacity_of(one))
    loads = sorted(shares)
    return loads, [statistics.median(shares[load]) for load in loads]
