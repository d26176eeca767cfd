"""Goodput against offered load, as a picture that can be read on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

INK = "#7d8590"
COLOURS = ("#e5534b", "#d4843e", "#a371f7", "#4493f8", "#57ab5a", "#2da44e", "#768390")


class Curve(NamedTuple):
    """One contender: what was offered and what was answered in time, in capacities."""

    name: str
    offered: Sequence[float]
    goodput: Sequence[float]


def plot_goodput(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Write a PNG with a transparent ground and ink between black and white."""
    import matplotlib as mpl  # noqa: PLC0415 - only who wants a picture needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    plt.rcParams.update({**dict.fromkeys(names, INK), "font.size": 11})
    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=150)
    for number, curve in enumerate(curves):
        ours = curve.name.startswith("asgi-mlperf")
        axes.plot(
            curve.offered,
            curve.goodput,
            marker="o",
            markersize=4,
            color=COLOURS[number % len(COLOURS)],
            linewidth=2.6 if ours else 1.6,
            linestyle="--" if "unknown" in curve.name else "-",
            label=curve.name,
        )
    axes.set_xscale("log")
    loads = sorted({load for curve in curves for load in curve.offered if load in (0.5, 1, 2, 4, 10)})
    axes.set_xticks(loads, [f"{load:g}x" for load in loads])
    axes.minorticks_off()
    axes.set(
        xlabel="offered load, in capacities", ylabel="goodput, in capacities", ylim=(0, 1.05), title=title
    )
    axes.grid(color=INK, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, bbox_inches="tight")
