"""Pictures of a summary; needs the extra ``plot``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nrg_sampler.evaluation.report import MEAN
from nrg_sampler.shapes.oracle import AXES


def plot(summary: dict[str, Any], file: Path) -> None:
    """Draw the picture that fits the suite and write it to ``file``.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'Expected matplotlib for plots; install it with `pip install "nrg-sampler[plot]"`.'
        ) from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    PICTURES.get(summary["suite"], wins)(summary, figure)
    figure.savefig(file, dpi=120)


def wins(summary: dict[str, Any], figure: Any) -> None:
    """Win rate of each arm and axis with its interval; 50 is no difference."""
    axes = figure.subplots()
    arms = list(dict.fromkeys(row["arm"] for row in summary["rows"]))
    for offset, axis in enumerate(AXES):
        rows = [row for row in summary["rows"] if row["axis"] == axis]
        places = [arms.index(row["arm"]) + 0.2 * (offset - 1) for row in rows]
        errors = [[row["win"] - row["low"] for row in rows], [row["high"] - row["win"] for row in rows]]
        axes.errorbar([row["win"] for row in rows], places, xerr=errors, fmt="o", markersize=4, label=axis)
    axes.axvline(50, color="0.6", linewidth=1)
    axes.set(yticks=range(len(arms)), yticklabels=arms, xlim=(0, 100), xlabel=f"win rate %, by the {summary['judge']}")
    axes.invert_yaxis()
    axes.legend()


def costs(summary: dict[str, Any], figure: Any) -> None:
    """Mean gain of each arm against its time."""
    axes = figure.subplots()
    for row in summary["rows"]:
        if row["axis"] != MEAN:
            continue
        error = [[row["gain"] - row["gain_low"]], [row["gain_high"] - row["gain"]]]
        axes.errorbar([row["k"]], [row["gain"]], yerr=error, fmt="o", color="C0")
        axes.annotate(row["arm"], (row["k"], row["gain"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="0.6", linewidth=1)
    axes.set(xlabel="time over an unguided run", ylabel=f"gain in standard deviations, by the {summary['judge']}")


def sweep(summary: dict[str, Any], figure: Any) -> None:
    """Gain by the judge and by the target against the scale, and what else changes with it."""
    left, right = figure.subplots(1, 2)
    scales = [arm["scale"] for arm in summary["arms"]]
    rows = [row for row in summary["rows"] if row["axis"] == MEAN]
    left.plot(scales, [row["gain"] for row in rows], "o-", label=f"held out ({summary['judge']})")
    left.fill_between(scales, [r["gain_low"] for r in rows], [r["gain_high"] for r in rows], alpha=0.2)
    if all(row["target_gain"] is not None for row in rows):
        left.plot(scales, [row["target_gain"] for row in rows], "s--", label="target")
    left.set(xscale="log", xlabel="scale", ylabel="gain in standard deviations")
    left.legend()
    for name in ("diversity", "motion", "high_frequency", "saturation"):
        if all(arm[name] is not None for arm in summary["arms"]):
            right.plot(scales, [arm[name] for arm in summary["arms"]], "o-", label=name.replace("_", " "))
    right.axhline(1, color="0.6", linewidth=1)
    right.set(xscale="log", xlabel="scale", ylabel="over the unguided run")
    right.legend()


PICTURES: dict[str, Callable[[dict[str, Any], Any], None]] = {"rivals": costs, "scale-sweep": sweep}
