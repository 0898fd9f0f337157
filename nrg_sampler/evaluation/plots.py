"""Pictures of a summary; needs the extra ``plot``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nrg_sampler.evaluation.report import MEAN, judge_name, labelled
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
    figure = Figure(figsize=(9, 5), layout="constrained")
    PICTURES.get(summary["suite"], wins)(summary, figure)
    figure.savefig(file, dpi=120)


def wins(summary: dict[str, Any], figure: Any) -> None:
    """Win rate of each arm and axis with its interval; 50 is no difference."""
    axes = figure.subplots()
    arms = [labelled(row) for row in summary["rows"] if row["axis"] == MEAN]
    for offset, axis in enumerate(AXES):
        rows = [row for row in summary["rows"] if row["axis"] == axis]
        places = [place + 0.2 * (offset - 1) for place in range(len(rows))]
        errors = [[row["win"] - row["low"] for row in rows], [row["high"] - row["win"] for row in rows]]
        axes.errorbar([row["win"] for row in rows], places, xerr=errors, fmt="o", markersize=4, label=axis)
    axes.axvline(50, color="0.6", linewidth=1)
    label = f"win rate in percent, by {judge_name(summary)}"
    axes.set(yticks=range(len(arms)), yticklabels=arms, xlim=(-2, 102), xlabel=label)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(AXES))


def costs(summary: dict[str, Any], figure: Any) -> None:
    """Mean gain of each arm against its time; arms have numbers, because their names would cover each other."""
    axes = figure.subplots()
    rows = [row for row in summary["rows"] if row["axis"] == MEAN]
    for number, row in enumerate(rows, start=1):
        error = [[row["gain"] - row["gain_low"]], [row["gain_high"] - row["gain"]]]
        color = f"C{number % 10}"
        name = f"{number}  {labelled(row)}"
        axes.errorbar([row["k"]], [row["gain"]], yerr=error, fmt="o", color=color, markersize=4, label=name)
        axes.annotate(str(number), (row["k"], row["gain"]), xytext=(4, 3), textcoords="offset points", color=color)
    axes.axhline(0, color="0.6", linewidth=1)
    axes.set(xlabel="time over an unguided run", ylabel=f"gain in standard deviations, by {judge_name(summary)}")
    figure.legend(loc="outside right upper", fontsize=8)


def sweep(summary: dict[str, Any], figure: Any) -> None:
    """Gain by the judge and by the target against the scale, and what else changes with it."""
    left, right = figure.subplots(1, 2)
    scales = [arm["scale"] for arm in summary["arms"]]
    rows = [row for row in summary["rows"] if row["axis"] == MEAN]
    left.plot(scales, [row["gain"] for row in rows], "o-", label=f"held out, by {judge_name(summary)}")
    left.fill_between(scales, [r["gain_low"] for r in rows], [r["gain_high"] for r in rows], alpha=0.2)
    if all(row["target_gain"] is not None for row in rows):
        left.plot(scales, [row["target_gain"] for row in rows], "s--", label="target")
    peak = next(arm["scale"] for arm in summary["arms"] if arm["arm"] == summary["peak"])
    left.axvline(peak, color="0.6", linewidth=1, label=f"held-out peak, {peak:g}")
    left.axhline(0, color="0.6", linewidth=0.5)
    left.set(ylabel="gain in standard deviations")
    left.legend()
    for name in ("diversity", "motion", "high_frequency", "saturation"):
        if all(arm[name] is not None for arm in summary["arms"]):
            right.plot(scales, [arm[name] for arm in summary["arms"]], "o-", label=name.replace("_", " "))
    right.axhline(1, color="0.6", linewidth=1)
    right.set(ylabel="over the unguided run")
    right.legend()
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axes.set_xlabel("scale")


PICTURES: dict[str, Callable[[dict[str, Any], Any], None]] = {"rivals": costs, "scale-sweep": sweep}
