"""From per-clip grades to win rates and gains: JSON rows and a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.evaluation.arms import UNGUIDED, Arm
from nrg_sampler.evaluation.features import STATIC
from nrg_sampler.evaluation.gains import gains, hacking_index, slider_correlation
from nrg_sampler.evaluation.grading import ORACLE, TARGET, Graded, column, tabulate
from nrg_sampler.evaluation.winrate import win_rate
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.statistics import estimate, ratio_interval

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
        ``{"suite", "n", "judge", "rows", "arms"}``, and ``"sliders"`` or ``"peak"``. A row is an arm and an axis, or
        their ``"mean"``: ``win`` in percent with a 95 % interval ``low`` to ``high``; ``k``, the median time of the
        arm's clips over that of the unguided ones; ``gain`` in standard deviations of the unguided grades, with its
        interval; ``target_gain``, the same by the reward that guided, which is no evidence; ``evidence``, whether the
        judge had no say in the clips. ``arms`` holds what does not depend on the axis, see ``about_arm``; ``sliders``,
        in the suite of weights, Spearman's rho of weight and gain by axis; ``peak``, in the sweep of scales, the arm
        that gains most by this judge.
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
        k = statistics.median(one.cost / max(two.cost, 1e-9) for one, two in zip(mine, other, strict=True))
        found = _rows(arm, mine, other, judge, k)
        rows += found
        about.append(about_arm(arm, mine, other, judge, found[-1], _diversity(diversity or {}, arm.name)))
    summary = {"suite": suite, "n": len(base), "judge": judge, "rows": rows, "arms": about}
    if suite == "weights":
        summary["sliders"] = _sliders(arms, table, judge)
    if suite == "scale-sweep" and rows:
        summary["peak"] = max((row for row in rows if row["axis"] == MEAN), key=lambda row: row["gain"])["arm"]
    return summary


def _rows(arm: Arm, mine: Sequence[Graded], other: Sequence[Graded], judge: str, k: float) -> list[dict[str, Any]]:
    scores, base = column(mine, judge), column(other, judge)
    change = gains(scores, base)
    target_change = gains(column(mine, TARGET), column(other, TARGET)).mean(dim=0)
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
            "evidence": not arm.guided_by(judge),
        }
        if axis != MEAN:
            row["mean"] = round(scores[:, index].mean().item(), 4)
            row["unguided_mean"] = round(base[:, index].mean().item(), 4)
        rows.append(row)
    return rows


def about_arm(
    arm: Arm,
    mine: Sequence[Graded],
    other: Sequence[Graded],
    judge: str,
    mean_row: Mapping[str, Any],
    diversity: Mapping[str, float | None],
) -> dict[str, Any]:
    """Return what an arm costs and what it does besides what it is graded for.

    Returns:
        ``scale``; ``k``; ``network``, forward passes of the video model over those of the unguided run;
        ``memory_mib``; ``gain_per_cost``, the mean gain over ``k - 1``; ``hacking``, see ``hacking_index``, and
        ``diversity`` over that of the unguided run, both with a 95 % interval ``_low`` to ``_high`` over prompts;
        ``motion``, ``high_frequency`` and ``saturation`` over those of the unguided run; ``static`` and
        ``unguided_static``, percent of clips with less than a tenth of the unguided median of motion. ``None`` where
        it was not measured.
    """
    k, gain = mean_row["k"], mean_row["gain"]
    about: dict[str, Any] = {
        "arm": arm.name,
        "scale": arm.guidance.scale if arm.guidance else 0.0,
        "k": k,
        "network": _of_both(mine, other, "evaluations"),
        "memory_mib": _median(mine, "memory_mib"),
        "unguided_memory_mib": _median(other, "memory_mib"),
        "gain_per_cost": None if k <= 1.01 else round(gain / (k - 1), 3),
        **_hacking(mine, other, judge),
        **diversity,
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


def _hacking(mine: Sequence[Graded], other: Sequence[Graded], judge: str) -> dict[str, float | None]:
    """The hacking index of the mean of the axes; none where the target gains nothing."""
    held_out, target = (gains(column(mine, by), column(other, by))[:, -1] for by in (judge, TARGET))
    index = hacking_index(held_out.mean().item(), target.mean().item())
    low, high = (None if index is None else ratio_interval(held_out, target)) or (None, None)
    # a large share that is confirmed is a small index
    return _with_interval("hacking", index, None if high is None else 1 - high, None if low is None else 1 - low)


def _diversity(diversity: Mapping[str, Mapping[int, float]], arm: str) -> dict[str, float | None]:
    """Mean over prompts of an arm's diversity, over that of the unguided run."""
    shared = sorted(set(diversity.get(arm, {})) & set(diversity.get(UNGUIDED, {})))
    mine, other = (torch.tensor([diversity[name][index] for index in shared]) for name in (arm, UNGUIDED))
    if not shared or not other.any():
        return _with_interval("diversity", None, None, None)
    low, high = ratio_interval(mine, other) or (None, None)
    return _with_interval("diversity", (mine.mean() / other.mean()).item(), low, high)


def _with_interval(name: str, value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    found = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {key: None if number is None else round(number, 3) for key, number in found.items()}


def _sliders(arms: Sequence[Arm], table: Mapping[str, Mapping[int, Graded]], judge: str) -> dict[str, Any]:
    """Rho of weight and gain over the arms that push along, by known weights and without a floor."""
    pushed = [arm for arm in arms if arm.guidance and arm.guidance.scale > 0 and not arm.guidance.floor]
    pushed = [arm for arm in pushed if arm.guidance and not arm.guidance.axis_weights.auto]
    shared = set(table.get(UNGUIDED, {}))
    for arm in pushed:
        shared &= set(table.get(arm.name, {}))
    if not shared or len(pushed) < 3:
        return {}
    order = sorted(shared)

    def scores(arm: str) -> Tensor:
        return column([table[arm][index] for index in order], judge)

    changes = torch.stack([gains(scores(arm.name), scores(UNGUIDED)) for arm in pushed])  # (arms, n, axes + 1)
    weights = torch.tensor([arm.guidance.axis_weights.resolve(AXES) for arm in pushed if arm.guidance])
    found = [slider_correlation(weights[:, axis], changes[..., axis]) for axis in range(len(AXES))]
    return {
        axis: {"rho": round(rho.value, 3), "low": round(rho.low, 3), "high": round(rho.high, 3)}
        for axis, rho in zip(AXES, found, strict=True)
    }


NO_EVIDENCE = "†"


def markdown(summary: Mapping[str, Any]) -> str:
    """Lay a summary out: win rates one row an arm, then costs and side effects, then what the suite asks for."""
    return "\n\n".join(part for part in (wins_table(summary), effects_table(summary), conclusion(summary)) if part)


def captioned(summary: Mapping[str, Any]) -> str:
    """Lay a summary out below a sentence on how it was made and what its columns mean.

    Args:
        summary: Of ``summarise``, with the entries of ``EvaluationSettings.about``.
    """
    steps = "the model's" if summary["steps"] is None else summary["steps"]
    caption = (
        f"{summary['suite']}: {summary['n']} prompts ({summary['split']}), {steps} steps, {summary['dtype']}, "
        f"graded by {judge_name(summary)}. Win rates in percent against the unguided run at the same seed, ties half, "
        "with 95 % intervals; gains in standard deviations of the unguided grades; other columns over the unguided "
        "run."
    )
    return f"{caption}\n\n{markdown(summary)}"


def wins_table(summary: Mapping[str, Any]) -> str:
    """What the judge says of each arm, in Markdown."""
    heads = (*AXES, MEAN, "gain of the mean", "hacking index", "time")
    lines = [f"| arm | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in summary["rows"]:
        by_arm.setdefault(row["arm"], []).append(row)
    about = {arm["arm"]: arm for arm in summary["arms"]}
    for arm, rows in by_arm.items():
        cells = [f"{row['win']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" for row in rows]
        last = rows[-1]
        cells.append(f"{last['gain']:+.2f} [{last['gain_low']:+.2f}, {last['gain_high']:+.2f}]")
        cells.append(_interval(about[arm], "hacking"))
        lines.append(f"| {labelled(last)} | {' | '.join(cells)} | {last['k']:.2f}x |")
    if not all(row["evidence"] for row in summary["rows"]):
        lines += [
            "",
            f"{NO_EVIDENCE} Here {judge_name(summary)} had a say in the clips: no evidence, but a bound.",
        ]
    return "\n".join(lines)


def judge_name(summary: Mapping[str, Any]) -> str:
    """Name the judge of a summary in a sentence."""
    return "the oracle" if summary["judge"] == ORACLE else f"the {summary['judge']} judge"


def labelled(row: Mapping[str, Any]) -> str:
    """Name the arm of a row, with a mark where the judge's grades are no evidence."""
    return f"{row['arm']}{'' if row['evidence'] else f' {NO_EVIDENCE}'}"


def conclusion(summary: Mapping[str, Any]) -> str:
    """The sentence that a suite is run for, if it has one."""
    if summary.get("sliders"):
        rho = ", ".join(
            f"{axis} {r['rho']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]" for axis, r in summary["sliders"].items()
        )
        return f"Spearman's rho of an axis' weight and its gain over the arms: {rho}."
    if summary.get("peak"):
        peak = next(row for row in summary["rows"] if row["arm"] == summary["peak"] and row["axis"] == MEAN)
        return (
            f"By {judge_name(summary)} the gain is largest at {peak['arm']}: {peak['gain']:+.2f} "
            f"[{peak['gain_low']:+.2f}, {peak['gain_high']:+.2f}]."
        )
    return ""


EFFECTS = {
    "network": "network",
    "memory_mib": "memory MiB",
    "gain_per_cost": "gain per cost",
    "diversity": "diversity",
    "motion": "motion",
    "static": "static % (unguided)",
    "high_frequency": "high frequency",
    "saturation": "saturation",
}


def effects_table(summary: Mapping[str, Any]) -> str:
    """What each arm costs and changes besides, in Markdown; columns that were not measured are left out."""
    targets = {row["arm"]: row["target_gain"] for row in summary["rows"] if row["axis"] == MEAN}
    shown = {name: title for name, title in EFFECTS.items() if any(arm[name] is not None for arm in summary["arms"])}
    if not shown:
        return ""
    lines = [f"| arm | target gain | {' | '.join(shown.values())} |", f"|---|{'---|' * (len(shown) + 1)}"]
    for arm in summary["arms"]:
        cells = [_number(targets[arm["arm"]]), *(_cell(arm, name) for name in shown)]
        lines.append(f"| {arm['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(arm: Mapping[str, Any], name: str) -> str:
    if name == "diversity":
        return _interval(arm, name)
    text = _number(arm[name])
    return f"{text} ({_number(arm['unguided_static'])})" if name == "static" else text


def _interval(numbers: Mapping[str, Any], name: str) -> str:
    text = _number(numbers[name])
    low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
    return text if low is None else f"{text} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
