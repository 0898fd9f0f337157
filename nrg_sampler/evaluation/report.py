"""From per-clip grades to win rates and gains: JSON rows and a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.evaluation.arms import UNGUIDED, Arm
from nrg_sampler.evaluation.features import STATIC
from nrg_sampler.evaluation.gains import estimate, gains, hacking_index, slider_correlation
from nrg_sampler.evaluation.grading import ORACLE, Graded, column, tabulate
from nrg_sampler.evaluation.winrate import win_rate
from nrg_sampler.rewards.base import RewardWeights
from nrg_sampler.shapes.oracle import AXES

MEAN = "mean"


def summarise(
    suite: str,
    arms: Sequence[Arm],
    grades: Iterable[Graded],
    judge: str = ORACLE,
    diversity: Mapping[str, Mapping[int, float]] | None = None,
) -> dict[str, Any]:
    """Compare every arm with the unguided one on the prompts that both have.

    Args:
        suite: Its name.
        arms: What was compared.
        grades: Of all arms.
        judge: Whose grades count.
        diversity: Distance between clips of one prompt, by arm and prompt.

    Returns:
        ``{"suite", "n", "judge", "rows", "arms", "sliders"}``. A row is an arm and an axis, or their ``"mean"``: ``win``
        in percent with a 95 % interval ``low`` to ``high``; ``k``, the median time of the arm's clips over that of the
        unguided ones; ``gain`` in standard deviations of the unguided grades, with its interval; ``target_gain``, the
        same by the reward that guided, which is no evidence. ``arms`` holds what does not depend on the axis, see
        ``about_arm``; ``sliders``, in the suite of weights, Spearman's rho of weight and gain by axis.
    """
    table = tabulate(list(grades))
    base = table.get(UNGUIDED, {})
    rows: list[dict[str, Any]] = []
    about: list[dict[str, Any]] = []
    for arm in arms:
        shared = sorted(set(table.get(arm.name, {})) & set(base))
        if arm.name == UNGUIDED or not shared:
            continue
        mine, other = ([clips[index] for index in shared] for clips in (table[arm.name], base))
        k = statistics.median(one.seconds / max(two.seconds, 1e-9) for one, two in zip(mine, other, strict=True))
        found = _rows(arm, mine, other, judge, k)
        rows += found
        about.append(about_arm(arm, mine, other, found[-1], _ratio(diversity, arm.name)))
    summary = {"suite": suite, "n": len(base), "judge": judge, "rows": rows, "arms": about}
    if suite == "weights":
        summary["sliders"] = _sliders(arms, table, judge)
    return summary


def _rows(arm: Arm, mine: Sequence[Graded], other: Sequence[Graded], judge: str, k: float) -> list[dict[str, Any]]:
    scores, base = column(mine, judge), column(other, judge)
    change = gains(scores, base)
    target_change = gains(column(mine, "target"), column(other, "target")).mean(dim=0)
    # The mean of the axes in units of their spread is what the last row compares.
    compared = [(scores[:, i], base[:, i]) for i in range(len(AXES))] + [(change[:, -1], torch.zeros(len(change)))]
    rows = []
    for index, axis in enumerate((*AXES, MEAN)):
        rate, gain = win_rate(*compared[index]), estimate(change[:, index])
        target = target_change[index].item()
        row = {
            "arm": arm.name,
            "weights": arm.weights,
            "axis": axis,
            "win": round(rate.win, 2),
            "low": round(rate.low, 2),
            "high": round(rate.high, 2),
            "k": round(k, 3),
            "gain": round(gain.value, 4),
            "gain_low": round(gain.low, 4),
            "gain_high": round(gain.high, 4),
            "target_gain": None if target != target else round(target, 4),
        }
        if axis != MEAN:
            row["mean"] = round(scores[:, index].mean().item(), 4)
            row["unguided_mean"] = round(base[:, index].mean().item(), 4)
        rows.append(row)
    return rows


def about_arm(
    arm: Arm, mine: Sequence[Graded], other: Sequence[Graded], mean_row: Mapping[str, Any], diversity: float | None
) -> dict[str, Any]:
    """Return what an arm costs and what it does besides what it is graded for.

    Returns:
        ``scale``; ``k``; ``network``, forward passes of the video model over those of the unguided run;
        ``memory_mib``; ``gain_per_cost``, the mean gain over ``k - 1``; ``hacking``, see ``hacking_index``; ``motion``,
        ``high_frequency``, ``saturation`` and ``diversity`` over those of the unguided run; ``static`` and
        ``unguided_static``, percent of clips with less than a tenth of the unguided median of motion. ``None`` where it
        was not measured.
    """
    k, gain, target = mean_row["k"], mean_row["gain"], mean_row["target_gain"]
    index = None if target is None else hacking_index(gain, target)
    about: dict[str, Any] = {
        "arm": arm.name,
        "scale": arm.guidance.scale if arm.guidance else 0.0,
        "k": k,
        "network": _of_both(mine, other, "evaluations"),
        "memory_mib": _median(mine, "memory_mib"),
        "unguided_memory_mib": _median(other, "memory_mib"),
        "gain_per_cost": None if k <= 1.01 else round(gain / (k - 1), 3),
        "hacking": None if index is None else round(index, 3),
        "diversity": diversity,
    }
    for name in ("motion", "high_frequency", "saturation"):
        about[name] = _of_both(mine, other, name)
    still = STATIC * (_median(other, "motion") or 0.0)
    for name, clips in (("static", mine), ("unguided_static", other)):
        moves = _values(clips, "motion")
        about[name] = round(100 * sum(value < still for value in moves) / len(moves), 2) if moves else None
    return about


def _values(clips: Sequence[Graded], name: str) -> list[float]:
    return [clip.further[name] for clip in clips if name in clip.further]


def _median(clips: Sequence[Graded], name: str) -> float | None:
    values = _values(clips, name)
    return round(statistics.median(values), 6) if values else None


def _of_both(mine: Sequence[Graded], other: Sequence[Graded], name: str) -> float | None:
    one, two = (_values(clips, name) for clips in (mine, other))
    return round(statistics.fmean(one) / statistics.fmean(two), 3) if one and two and any(two) else None


def _ratio(diversity: Mapping[str, Mapping[int, float]] | None, arm: str) -> float | None:
    """Mean over prompts of an arm's diversity, over that of the unguided run."""
    one, two = ((diversity or {}).get(name, {}) for name in (arm, UNGUIDED))
    shared = set(one) & set(two)
    total = sum(two[index] for index in shared)
    return round(sum(one[index] for index in shared) / total, 3) if total else None


def _sliders(arms: Sequence[Arm], table: Mapping[str, Mapping[int, Graded]], judge: str) -> dict[str, Any]:
    """Rho of weight and gain over the arms that push along, without a floor."""
    pushed = [arm for arm in arms if arm.guidance and arm.guidance.scale > 0 and not arm.guidance.floor]
    shared = set(table.get(UNGUIDED, {}))
    for arm in pushed:
        shared &= set(table.get(arm.name, {}))
    if not shared or len(pushed) < 3:
        return {}
    order = sorted(shared)

    def scores(arm: str) -> Tensor:
        return column([table[arm][index] for index in order], judge)

    changes = torch.stack([gains(scores(arm.name), scores(UNGUIDED)) for arm in pushed])  # (arms, n, axes + 1)
    weights = torch.tensor([RewardWeights.parse(arm.guidance.weights).resolve(AXES) for arm in pushed if arm.guidance])
    found = [slider_correlation(weights[:, axis], changes[..., axis]) for axis in range(len(AXES))]
    return {
        axis: {"rho": round(rho.value, 3), "low": round(rho.low, 3), "high": round(rho.high, 3)}
        for axis, rho in zip(AXES, found, strict=True)
    }


def markdown(summary: dict[str, Any]) -> str:
    """Lay a summary out: win rates one row an arm, then costs and side effects, then the sliders."""
    parts = [_wins(summary), _effects(summary)]
    if summary.get("sliders"):
        rho = ", ".join(
            f"{axis} {r['rho']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]" for axis, r in summary["sliders"].items()
        )
        parts.append(f"Spearman's rho of an axis' weight and its gain over the arms: {rho}.")
    return "\n\n".join(part for part in parts if part)


def _wins(summary: dict[str, Any]) -> str:
    lines = [f"| arm | {' | '.join((*AXES, MEAN))} | gain of the mean | time |", f"|---|{'---|' * (len(AXES) + 3)}"]
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in summary["rows"]:
        by_arm.setdefault(row["arm"], []).append(row)
    for arm, rows in by_arm.items():
        cells = [f"{row['win']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" for row in rows]
        last = rows[-1]
        gain = f"{last['gain']:+.2f} [{last['gain_low']:+.2f}, {last['gain_high']:+.2f}]"
        lines.append(f"| {arm} | {' | '.join(cells)} | {gain} | {last['k']:.2f}x |")
    return "\n".join(lines)


EFFECTS = {
    "network": "network",
    "memory_mib": "memory MiB",
    "gain_per_cost": "gain per cost",
    "hacking": "hacking index",
    "diversity": "diversity",
    "motion": "motion",
    "high_frequency": "high frequency",
    "saturation": "saturation",
    "static": "static %",
}


def _effects(summary: dict[str, Any]) -> str:
    targets = {row["arm"]: row["target_gain"] for row in summary["rows"] if row["axis"] == MEAN}
    shown = {name: title for name, title in EFFECTS.items() if any(arm[name] is not None for arm in summary["arms"])}
    if not shown:
        return ""
    lines = [f"| arm | target gain | {' | '.join(shown.values())} |", f"|---|{'---|' * (len(shown) + 1)}"]
    for arm in summary["arms"]:
        cells = [_number(targets[arm["arm"]]), *(_number(arm[name]) for name in shown)]
        lines.append(f"| {arm['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
