"""Measure how often rewards agree with preferences: a run that yields its progress and writes figures and plots."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.files import replacing, writable_folder
from nrg_sampler.json_text import finite_only, to_json
from nrg_sampler.locks import FolderLock
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.rewards.loading import load_reward
from nrg_sampler.runs.device import AUTO, default_device, dtype_name, dtype_reason
from nrg_sampler.runs.progress import Progress, Run
from nrg_sampler.training.along import grade_along, score_along, table_along
from nrg_sampler.training.csv_table import BadRow
from nrg_sampler.training.distil import prepare_distillation
from nrg_sampler.training.encoding import PairEncoder
from nrg_sampler.training.grade import grade_differences, markdown, plot_differences, plot_fractions, score_differences
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.prepare import TrainingData, load_encoder, open_cache, prepare_evaluation
from nrg_sampler.training.settings import LabelledPairs, RewardEvaluation


@dataclass(frozen=True)
class EvaluatedRewards:
    """What an evaluation brought.

    Args:
        pairs: How many pairs the rewards were compared on.
        bad: Rows and files that were left out.
        rewards: The figures of each reward, see :func:`~nrg_sampler.training.grade.grade_differences`.
    """

    pairs: int
    bad: list[BadRow]
    rewards: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it; what could not be measured is ``None``."""
        bad = [{"row": row.row, "reason": row.reason} for row in self.bad]
        figures: dict[str, Any] = finite_only({"pairs": self.pairs, "bad_rows": bad, "rewards": self.rewards})
        return figures

    def markdown(self) -> str:
        """Return a table for each reward."""
        return "\n\n".join(
            f"{report['reward']}\n\n{table_along(report['axes']) if report['along'] else markdown(report)}"
            for report in self.rewards
        )


def evaluate_rewards(settings: RewardEvaluation) -> Run[EvaluatedRewards]:
    """Evaluate rewards on pairs and write ``accuracy.json``, ``accuracy.md`` and plots to the output folder.

    Args:
        settings: The rewards, the pairs and the output folder.

    Returns:
        A run that yields ``Progress`` of preparing the pairs and of scoring them.

    Raises:
        ValueError: If the output folder cannot be written; while it runs, if rewards and data do not fit, or
            another run is at work there.
    """
    writable_folder(settings.out)
    return Run(_evaluate_alone(settings))


def _evaluate_alone(settings: RewardEvaluation) -> Generator[Progress, None, EvaluatedRewards]:
    with FolderLock(settings.out):
        return (yield from _evaluate(settings))


def _evaluate(settings: RewardEvaluation) -> Generator[Progress, None, EvaluatedRewards]:
    device = torch.device("cpu" if settings.cpu else default_device())
    notes: tuple[str, ...] = ()
    if settings.encoding.dtype == AUTO:
        dtype = dtype_name(AUTO, str(device))
        settings = replace(settings, encoding=replace(settings.encoding, dtype=dtype))
        notes = (f"clips are encoded in {dtype}: {dtype_reason(str(device))}",)
    yield Progress("loading", 0, unit="model", notes=notes)
    rewards = [load_reward(name).float().to(device) for name in settings.rewards]
    _check_axes(settings.rewards, rewards)
    trained_on = (rewards[0].config.about or {}).get("clips")
    encoder = load_encoder(settings.encoding, device, trained_on)
    for reward in rewards:
        reward.check_compatible(encoder.pipe)
    prepared = yield from _prepare(settings, encoder, rewards[0].axes, device)
    yield prepared.progress()
    pairs = prepared.held_out
    assert pairs is not None  # an empty table is refused
    reports = []
    for place, (name, reward) in enumerate(zip(settings.rewards, rewards, strict=True)):
        plot = settings.out / ("differences.png" if len(rewards) == 1 else f"differences-{place + 1}.png")
        figures = yield from _grade(reward, pairs, device, settings.seed, plot)
        reports.append({"reward": str(name), **figures})
    if len(rewards) > 1 and not pairs.levels and all(report["training_pairs"] for report in reports):
        plot_fractions(reports, rewards[0].axes, settings.out / "fractions.png")
    result = EvaluatedRewards(len(pairs), prepared.bad, reports)
    for file, text in (("accuracy.json", to_json(result.to_dict(), indent=2)), ("accuracy.md", result.markdown())):
        with replacing(settings.out / file) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    return result


def _check_axes(names: tuple[str | Path, ...], rewards: list[LatentReward]) -> None:
    for name, reward in zip(names, rewards, strict=True):
        if reward.axes != rewards[0].axes:
            raise ValueError(
                f"Expected rewards with the same axes, but {names[0]} has {', '.join(rewards[0].axes)} and {name} has "
                f"{', '.join(reward.axes)}; evaluate them one at a time."
            )


def _prepare(
    settings: RewardEvaluation, encoder: PairEncoder, axes: tuple[str, ...], device: torch.device
) -> Generator[Progress, None, TrainingData]:
    """Labelled pairs, or those that a teacher scores: all of them or the held-out ones."""
    data, encoding, folder = settings.data, settings.encoding, settings.out / "cache"
    if isinstance(data, LabelledPairs):
        cache = open_cache(encoding, encoder, folder, sampled=False)
        return (yield from prepare_evaluation(data, encoder, cache, axes, settings.held_out))
    cache = open_cache(encoding, encoder, folder, sampled=True)
    share = 1.0 if settings.held_out is None else settings.held_out
    prepared = yield from prepare_distillation(data, encoding.model, encoder, cache, share, device)
    if prepared.held_out is None:
        raise ValueError(f"Expected held-out clips, but `held_out` {share:g} leaves none; evaluate on all of them.")
    if prepared.held_out.axes != axes:
        raise ValueError(
            f"Expected a teacher of the rewards' axes ({', '.join(axes)}), but {data.teacher_name} scores "
            f"{', '.join(prepared.held_out.axes)}; name another."
        )
    return prepared


def _grade(
    reward: LatentReward, pairs: PairData, device: torch.device, seed: int, plot: Path
) -> Generator[Progress, None, dict[str, Any]]:
    """Figures of one reward, and its plot; along trajectories there is none."""
    about = reward.config.about or {}
    if pairs.levels:
        compared: list[Tensor] = []
        for differences in score_along(reward, pairs, device):
            compared.append(differences)
            yield Progress("scoring", sum(map(len, compared)), len(pairs), unit="pair")
        along = grade_along(torch.cat(compared), pairs)
        return {"training_pairs": about.get("training_pairs"), "along": True, "axes": along, "plot": None}
    if reward.needs_velocity:
        raise ValueError(
            "Expected the sampler's own steps for a reward that reads what the velocity predicts, but got clips; "
            "evaluate it with --trajectories."
        )
    scored = []
    for part in score_differences(reward, pairs, device, seed):
        scored.append(part)
        yield Progress("scoring", sum(len(differences) for differences, _ in scored), len(pairs), unit="pair")
    differences, sigma = (torch.cat(column) for column in zip(*scored, strict=True))
    loss = (about.get("training") or {}).get("loss", "bradley-terry-ties")
    axes = grade_differences(differences, sigma, pairs, _calibration(len(pairs)), loss, reward.std)
    plot_differences(differences, pairs, plot)
    return {"training_pairs": about.get("training_pairs"), "along": False, "axes": axes, "plot": str(plot)}


def _calibration(count: int) -> Tensor:
    """Half of the pairs, at random but always the same ones: the tie threshold is chosen on them."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 2]] = True
    return chosen
