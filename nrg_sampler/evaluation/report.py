"""From per-clip grades to win rates: JSON rows and a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nrg_sampler.evaluation.arms import UNGUIDED, Arm
from nrg_sampler.evaluation.grading import Graded
from nrg_sampler.evaluation.winrate import win_rate
from nrg_sampler.shapes.oracle import AXES


def summarise(suite: str, arms: Sequence[Arm], grades: Iterable[Graded]) -> dict[str, Any]:
    """Compare every arm with the unguided one on the prompts that both have.

    Returns:
        ``{"suite", "n", "judge", "rows": [{"arm", "weights", "axis", "win", "low", "high", "k"}]}``: win rates in
        percent with a 95 % interval, and ``k``, the median time of the arm's clips over that of unguided ones.
    """
    table: dict[str, dict[int, Graded]] = {}
    for graded in grades:
        table.setdefault(graded.arm, {})[graded.index] = graded
    base = table.get(UNGUIDED, {})
    rows = []
    for arm in arms:
        shared = sorted(set(table.get(arm.name, {})) & set(base))
        if arm.guidance is None or not shared:
            continue
        mine, other = (torch.tensor([clips[i].grades for i in shared]) for clips in (table[arm.name], base))
        seconds = [statistics.median(clips[i].seconds for i in shared) for clips in (table[arm.name], base)]
        for index, axis in enumerate(AXES):
            rate = win_rate(mine[:, index], other[:, index])
            rows.append(
                {
                    "arm": arm.name,
                    "weights": str(arm.guidance.weights),
                    "axis": axis,
                    "win": round(rate.win, 2),
                    "low": round(rate.low, 2),
                    "high": round(rate.high, 2),
                    "k": round(seconds[0] / seconds[1], 3),
                    "mean": round(mine[:, index].mean().item(), 4),
                    "unguided_mean": round(other[:, index].mean().item(), 4),
                }
            )
    return {"suite": suite, "n": len(base), "judge": "oracle", "rows": rows}


def markdown(summary: dict[str, Any]) -> str:
    """Lay a summary out as a table, one row an arm."""
    lines = [f"| arm | {' | '.join(AXES)} | time |", f"|---|{'---|' * (len(AXES) + 1)}"]
    cells: dict[str, list[str]] = {}
    times: dict[str, float] = {}
    for row in summary["rows"]:
        cells.setdefault(row["arm"], []).append(f"{row['win']:.1f} [{row['low']:.1f}, {row['high']:.1f}]")
        times[row["arm"]] = row["k"]
    lines += [f"| {arm} | {' | '.join(values)} | {times[arm]:.2f}x |" for arm, values in cells.items()]
    return "\n".join(lines)
