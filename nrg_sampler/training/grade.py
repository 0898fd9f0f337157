"""Grade a latent reward on labelled pairs: by axis, by noise level, with and without ties."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrg_sampler.files import replacing
from nrg_sampler.rewards.base import normalised
from nrg_sampler.training.accuracy import (
    accuracy_with_ties,
    accuracy_without_ties,
    calibrate_threshold,
    expected_calibration_error,
)
from nrg_sampler.training.along import grade_along, score_along
from nrg_sampler.training.losses import LIKELIHOODS
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.preferences import OVERALL
from nrg_sampler.training.scoring import score_pairs

if TYPE_CHECKING:
    from nrg_sampler.rewards.latent import LatentReward

SIGMA_BINS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))


def bin_name(bounds: tuple[float, float]) -> str:
    """Return how a noise bin is called in reports, as ``0.2-0.4``."""
    return f"{bounds[0]:.1f}-{bounds[1]:.1f}"


@torch.no_grad()
def score_differences(
    reward: LatentReward,
    data: PairData,
    device: torch.device,
    seed: int = 0,
    bins: Sequence[tuple[float, float]] = SIGMA_BINS,
    batch: int = 8,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Score every pair once in every noise bin, both clips under the same noise.

    Args:
        reward: The reward.
        data: The pairs.
        device: Where the reward is.
        seed: Of noise and noise levels, which are the same for every reward.
        bins: Lower and upper noise level of each.
        batch: Pairs scored together.

    Yields:
        For some pairs at a time the normalised reward of A minus that of B, shape ``(b, bins, axes)``, and their noise
        levels ``(b, bins)``.
    """
    for start in range(0, len(data), batch):
        indices = range(start, min(start + batch, len(data)))
        pairs = data.batch(indices, device)
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in indices]
        noise = torch.stack([torch.randn(data.shape, generator=g) for g in generators]).to(device)
        noise = noise[:, None].expand(-1, 2, *noise.shape[1:])
        parts, levels = [], []
        for low, high in bins:
            sigma = low + (high - low) * torch.cat([torch.rand(1, generator=g) for g in generators])
            raw = score_pairs(reward, pairs.clean, noise, sigma.to(device), pairs.conditioning)
            scores = normalised(reward, raw).cpu()  # (b, 2, axes)
            parts.append(scores[:, 0] - scores[:, 1])
            levels.append(sigma)
        yield torch.stack(parts, dim=1), torch.stack(levels, dim=1)


def accuracy_by_bin(
    differences: Tensor, data: PairData, bins: Sequence[tuple[float, float]] = SIGMA_BINS
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the accuracy without ties of each noise bin and axis with decided pairs, as a model card shows it.

    Args:
        differences: Shape ``(pairs, bins, axes)``.
        data: Whose pairs they are.
        bins: The noise bins.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for place, bounds in enumerate(bins):
        table[bin_name(bounds)] = {}
        for index, axis in enumerate(data.axes):
            preference = data.preference[:, index].nan_to_num(0)  # unlabelled pairs are left out as ties are
            if preference.any():
                accuracy = accuracy_without_ties(differences[:, place, index], preference)
                table[bin_name(bounds)][axis] = {"accuracy": accuracy, "pairs": int(preference.abs().sum())}
    return table


def held_out_accuracy(
    reward: LatentReward, data: PairData, device: torch.device
) -> dict[str, dict[str, dict[str, float]]]:
    """Score held-out pairs and return the accuracy without ties of each noise bin and axis, see `accuracy_by_bin`.

    Clips whose trajectories are kept are scored along these instead, at each level.
    """
    if data.levels:
        report = grade_along(torch.cat(list(score_along(reward, data, device))), data)
        return {
            level: {
                axis: {"accuracy": figures["by_sigma"][level], "pairs": figures["pairs"]}
                for axis, figures in report.items()
                if figures["pairs"]
            }
            for level in next(iter(report.values()))["by_sigma"]
        }
    return accuracy_by_bin(torch.cat([part for part, _ in score_differences(reward, data, device)]), data)


def grade_differences(
    differences: Tensor, sigma: Tensor, data: PairData, calibration: Tensor, loss: str, std: Sequence[float]
) -> dict[str, Any]:
    """Compute all figures that are reported of a reward.

    Args:
        differences: Normalised, shape ``(pairs, bins, axes)``.
        sigma: Noise levels, shape ``(pairs, bins)``.
        data: Whose pairs they are.
        calibration: Which pairs the tie threshold is chosen on, bool, ``(pairs,)``; it is tested on the others.
        loss: What the reward was trained with: the model that turns differences into probabilities.
        std: Of the raw reward, which those models are about, one per axis.

    Returns:
        For each axis, and ``Overall`` (the sum of the axes) where it is labelled, the figures over all noise levels
        and those of each bin.
    """
    report: dict[str, Any] = {}
    columns = [(axis, differences[..., index], data.preference[:, index]) for index, axis in enumerate(data.axes)]
    if data.overall.isfinite().any():
        columns.append((OVERALL, differences.sum(dim=-1), data.overall))
    for index, (axis, difference, preference) in enumerate(columns):
        scale = std[index] if axis != OVERALL else None
        labelled = _Labels(preference, preference.isfinite(), calibration)
        report[axis] = _figures(difference, sigma, labelled, loss, scale)
        report[axis]["by_sigma"] = {
            bin_name(bounds): _figures(difference[:, [place]], sigma[:, [place]], labelled, loss, scale)
            for place, bounds in enumerate(SIGMA_BINS)
        }
    return report


@dataclass(frozen=True)
class _Labels:
    """The labels of one axis, which pairs have one, and on which the tie threshold is chosen; each ``(pairs,)``."""

    preference: Tensor
    known: Tensor
    calibration: Tensor


def _figures(difference: Tensor, sigma: Tensor, labels: _Labels, loss: str, scale: float | None) -> dict[str, Any]:
    """Compute the figures of one axis over some bins, ``difference`` and ``sigma`` of shape ``(pairs, bins)``."""
    known, preference = labels.known, labels.preference[:, None].expand_as(difference)
    chosen, tested = (rows & known for rows in (labels.calibration, ~labels.calibration))
    flat = {
        name: (difference[rows].flatten(), preference[rows].flatten())
        for name, rows in (("all", known), ("calibration", chosen), ("test", tested))
    }
    figures: dict[str, Any] = {
        "pairs": int(known.sum()),
        "ties": int((labels.preference == 0).sum()),
        "without_ties": accuracy_without_ties(*flat["all"]),
        "with_ties": math.nan,
        "with_ties_in_sample": calibrate_threshold(*flat["all"]).accuracy if known.any() else math.nan,
    }
    if chosen.any() and tested.any():
        threshold = calibrate_threshold(*flat["calibration"]).value
        figures |= {"threshold": threshold, "with_ties": accuracy_with_ties(*flat["test"], threshold)}
    if scale is not None:
        figures["ece"] = _calibration_error(difference * scale, sigma, preference, known, loss)
    return figures


def _calibration_error(difference: Tensor, sigma: Tensor, preference: Tensor, known: Tensor, loss: str) -> float:
    """Compute the error of the probability that the predicted winner wins, given that the pair is no tie."""
    likelihood = LIKELIHOODS.get(loss, LIKELIHOODS["bradley-terry"])
    decided = known[:, None] & (preference != 0)
    log_a, log_b, _ = likelihood(difference[decided], sigma[decided])
    win_a = (log_a - log_b).sigmoid()
    confidence = torch.maximum(win_a, 1 - win_a)
    right = (difference[decided].sign() == preference[decided]).float()
    return expected_calibration_error(confidence, right)


def plot_differences(differences: Tensor, data: PairData, file: Path) -> None:
    """Draw how score differences are distributed over preferred and tied pairs, one panel an axis.

    Args:
        differences: Normalised, shape ``(pairs, bins, axes)``; positive where the preferred clip scored higher.
        data: Whose pairs they are.
        file: A PNG.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Figure 4.
    """
    figure, panels = _figure(len(data.axes))
    for index, (axis, panel) in enumerate(zip(data.axes, panels, strict=True)):
        preference = data.preference[:, index]
        decided, tied = preference.abs() == 1, preference == 0
        preferred = (differences[decided][..., index] * preference[decided][:, None]).flatten()
        shown = {"preferred minus other": preferred, "tied pairs": differences[tied][..., index].flatten()}
        for label, values in shown.items():
            if len(values):
                panel.hist(values.numpy(), bins=40, density=True, alpha=0.6, label=f"{label} ({len(values)})")
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set(title=axis, xlabel="difference in standard deviations", ylabel="density")
        if any(len(values) for values in shown.values()):
            panel.legend(fontsize="small")
    _save(figure, file)


def plot_fractions(reports: Sequence[Mapping[str, Any]], axes: Sequence[str], file: Path) -> None:
    """Draw accuracy without ties against the number of pairs that each reward was trained on.

    Args:
        reports: Of several rewards, each with ``training_pairs`` and ``axes``.
        axes: Which axes to draw.
        file: A PNG.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Figure 3.
    """
    figure, (panel,) = _figure(1)
    ordered = sorted(reports, key=lambda report: report["training_pairs"])
    for axis in axes:
        values = [100 * report["axes"][axis]["without_ties"] for report in ordered]
        panel.plot([report["training_pairs"] for report in ordered], values, marker="o", label=axis)
    panel.set(xlabel="training pairs", ylabel="accuracy without ties, percent")
    panel.legend()
    _save(figure, file)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib; install it with pip install "nrg-sampler[plot]".') from error
    figure = Figure(figsize=(4 * panels + 1, 3.5), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Any, file: Path) -> None:
    with replacing(file) as partial:
        figure.savefig(partial, dpi=120)


def markdown(report: Mapping[str, Any]) -> str:
    """Lay the figures of one reward out, one row an axis."""
    headings = ("pairs", "ties", "without ties", "with ties", "with ties, in sample", "ECE")
    names = ("pairs", "ties", "without_ties", "with_ties", "with_ties_in_sample", "ece")
    bins = [bin_name(bounds) for bounds in SIGMA_BINS]
    lines = [
        f"| axis | {' | '.join(headings)} | {' | '.join(f'σ {name}' for name in bins)} |",
        f"|---|{'---|' * (len(names) + len(bins))}",
    ]
    for axis, figures in report["axes"].items():
        cells = [_cell(name, figures.get(name, math.nan)) for name in names]
        cells += [_cell("without_ties", figures["by_sigma"][name]["without_ties"]) for name in bins]
        lines.append(f"| {axis} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    if name in ("pairs", "ties"):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if name == "ece" else f"{100 * value:.1f}"
