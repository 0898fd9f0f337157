"""Ablate the choices of the reward: one changed at a time, several seeds each, accuracy on held-out pairs."""

from __future__ import annotations

import csv
import random
import statistics
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nrg_sampler.files import replacing
from nrg_sampler.flow import noised
from nrg_sampler.json_text import read_object, to_json
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.runs.device import fast_autocast
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import caption
from nrg_sampler.shapes.train.curriculum import FIRST_POOLS
from nrg_sampler.shapes.train.groups import EDITED, LEFT, MIXTURE, RIGHT, PairSampler, to_prompt
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.pool import GROUP, Pool
from nrg_sampler.shapes.train.rating import accuracy_by_sigma
from nrg_sampler.shapes.train.train_base import TrainingAttention, fixed_length
from nrg_sampler.shapes.train.train_text import encode_text
from nrg_sampler.training.grade import SIGMA_BINS
from nrg_sampler.training.losses import LOSSES, Comparison
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.trainer import PULL
from nrg_sampler.training.trunk import merge_trunk, open_trunk

if TYPE_CHECKING:
    from diffusers import WanPipeline

DEFAULT = Objective()
FACTORS: dict[str, tuple[Any, ...]] = {
    "loss": ("bradley-terry", "thurstone", "regression"),
    "pooling": ("mean", "max"),
    "separate_queries": (False,),
    "trunk": ("lora", "frozen"),
    "noised": (False,),
    "num_token_reads": (0,),
    "num_blocks": (1, 4),
    "sigma_sampling": ("shifted", "logit-normal"),
    "same_noise": (False,),
    "prompt_dropout": (0.1,),
}
MAIN_FACTORS = ("loss", "pooling", "separate_queries", "trunk", "noised", "num_token_reads")
KINDS = ("mixed", "same")  # of held-out pairs, see `PairSampler`
RELIABLE = 0.8  # up to this noise level the table averages; above it little is left to see
LORA_RANK = 16


@dataclass(frozen=True)
class Cell:
    """One run: an objective that differs from the default in one choice, and a seed."""

    factor: str
    value: Any
    seed: int

    @property
    def objective(self) -> Objective:
        """The default objective with the one choice changed."""
        return DEFAULT if self.factor == "default" else replace(DEFAULT, **{self.factor: self.value})

    @property
    def name(self) -> str:
        """Unique in the ablation; the cell's files are called so."""
        return (
            f"{self.factor}-{self.value}-seed{self.seed}" if self.factor != "default" else f"default-seed{self.seed}"
        )


def cells(factors: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """List the runs, seed by seed, so that an early stop leaves every choice with as many seeds.

    Raises:
        ValueError: If a factor is unknown.
    """
    if unknown := set(factors) - set(FACTORS):
        raise ValueError(f"Expected factors from {', '.join(FACTORS)}, but got {', '.join(sorted(unknown))}.")
    choices = [("default", "default"), *((factor, value) for factor in factors for value in FACTORS[factor])]
    return [Cell(factor, value, seed) for seed in seeds for factor, value in choices]


def run_ablation(
    folder: Path,
    steps: int = 250,
    batch: int = 32,
    seed: int = 0,
    device: str = "cpu",
    seeds: int = 3,
    factors: Sequence[str] = MAIN_FACTORS,
    groups: int = 200,
) -> Iterator[dict[str, float]]:
    """Train and grade every cell that is not done yet and write ``folder/ablation.{csv,json,md}``.

    Args:
        folder: Holds the earlier stages and the pools that the stage ``first-reward`` made.
        steps: Optimiser steps of each run.
        batch: Clips a step.
        seed: The first of the seeds.
        device: Where to train.
        seeds: How many seeds each choice gets.
        factors: Choices that are varied, one at a time.
        groups: Held-out groups of each kind and noise level.

    Yields:
        The numbers of the training loop, with the number of the cell.

    Raises:
        FileNotFoundError: If there are no pools.
        ValueError: If a factor is unknown, or the folder holds cells of other settings.
    """
    from nrg_sampler.shapes.train.assemble import assemble_pipeline

    planned = cells(factors, range(seed, seed + seeds))
    train, held_out = (_pool(folder, split) for split in ("train", "validation"))
    pipe = assemble_pipeline(folder).to(device)
    results = folder / "ablation"
    results.mkdir(parents=True, exist_ok=True)
    settings = {"steps": steps, "batch": batch, "groups": groups, "clips": len(train.group)}
    for number, cell in enumerate(planned):
        file = results / f"{cell.name}.json"
        if not file.exists():
            checkpoint = results / f"{cell.name}.pt"
            reward = yield from _trained(cell, number, train, pipe, steps, batch, device, checkpoint)
            accuracy = {kind: accuracy_by_sigma(reward, held_out, pipe, 0, kind, groups) for kind in KINDS}
            with replacing(file) as partial:
                partial.write_text(to_json({"settings": settings, "accuracy": accuracy}, indent=2) + "\n")
            checkpoint.unlink(missing_ok=True)
        _write_tables(folder, results, planned, settings)


def _pool(folder: Path, split: str) -> Pool:
    files = [folder / f"pool-{kind}-{split}.safetensors" for kind in FIRST_POOLS]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"Expected {file}, made by the stage `first-reward`: run that one first.")
    return Pool.load(*files)


def _trained(
    cell: Cell, number: int, pool: Pool, pipe: WanPipeline, steps: int, batch: int, device: str, checkpoint: Path
) -> Generator[dict[str, float], None, LatentReward]:
    """Train one cell; returns the reward."""
    objective, sampler = cell.objective, PairSampler(pool)
    torch.manual_seed(cell.seed)
    reward: LatentReward = LatentReward.from_transformer(
        pipe.transformer, **objective.reward_options(), axes=AXES, text_axes=("TA",)
    ).to(device)
    open_trunk(reward, objective.trunk, LORA_RANK)
    for block in reward.blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(TrainingAttention())

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(cell.seed * 1_000_003 + step)
        kinds = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=batch // GROUP)
        rows, labels = sampler.draw_groups(kinds, rng, EDITED)
        raw, sigma = _rate(
            reward, objective, pool, rows, labels, pipe, rng, generator
        )  # (groups, GROUP, 3), (groups,)
        preference = sampler.preferences(rows, labels, generator).to(device)  # (groups, pairs, 3)
        scores = sampler.ratings(rows, labels)
        comparison = Comparison(
            raw[:, LEFT].flatten(0, 1),
            raw[:, RIGHT].flatten(0, 1),
            preference.flatten(0, 1),
            sigma.repeat_interleave(len(LEFT)),
            *(scores[:, side].flatten(0, 1).to(device) for side in (LEFT, RIGHT)),
        )
        return LOSSES[objective.loss](comparison).per_axis().sum() + PULL * raw.pow(2).mean(), {"cell": number}

    settings = LoopSettings(steps, warmup=min(50, steps // 4), ema=0.99, seed=cell.seed, about={"batch": batch})
    yield from fit(reward, loss, _optimizers(reward), settings, checkpoint)
    merge_trunk(reward)
    return reward


def _rate(
    reward: LatentReward,
    objective: Objective,
    pool: Pool,
    rows: Tensor,
    labels: Tensor,
    pipe: WanPipeline,
    rng: random.Random,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Compute raw rewards of groups of clips, noised as the objective has it, and the noise level of each group."""
    groups, device = len(rows), reward.queries.device
    clean = pool.latents[rows.flatten()].float().to(device)
    sigma = objective.sample_sigma(groups, generator).to(device)
    noise = objective.sample_noise(groups, GROUP, clean.shape[1:], generator).flatten(0, 1).to(device)
    levels = sigma.repeat_interleave(GROUP)
    with torch.no_grad():
        texts = [caption(to_prompt(row), rng) for row in labels.tolist()]
        embeds, mask = fixed_length(*encode_text(pipe.tokenizer, pipe.text_encoder, texts))
        kept = ~objective.sample_dropped(groups, generator).to(device)[:, None]
        embeds, mask = embeds * kept[..., None], mask & kept
    conditioning = Conditioning(embeds.repeat_interleave(GROUP, dim=0), mask.repeat_interleave(GROUP, dim=0))
    with fast_autocast(device):
        raw = reward(noised(clean, noise, levels), levels, conditioning)
    return raw.float().view(groups, GROUP, -1), sigma


def _optimizers(reward: LatentReward, lr: float = 6e-4) -> list[torch.optim.Optimizer]:
    """Muon for the open matrices of the blocks, AdamW for the rest, as the bundled reward; adapters are for AdamW."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in reward.named_parameters():
        if parameter.requires_grad:
            inside = name.startswith("blocks") and parameter.ndim == 2 and "lora_" not in name
            (matrices if inside else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _write_tables(folder: Path, results: Path, planned: Sequence[Cell], settings: dict[str, int]) -> None:
    rows: list[dict[str, Any]] = []
    for cell in planned:
        file = results / f"{cell.name}.json"
        if not file.exists():
            continue
        stored = read_object(file, "remove it to make the cell again", ("settings", "accuracy"))
        if stored["settings"] != settings:
            raise ValueError(
                f"Expected cells made with {settings}, but {file.name} was made with {stored['settings']}; "
                f"repeat those settings or remove {results.name}."
            )
        for kind, by_bin in stored["accuracy"].items():
            for level, by_axis in by_bin.items():
                rows += [
                    {**asdict(cell), "pairs_kind": kind, "sigma": level, "axis": axis, **figures}
                    for axis, figures in by_axis.items()
                ]
    with replacing(folder / "ablation.csv") as partial, open(partial, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summary = summarise(rows)
    for name, text in (
        ("ablation.json", to_json({"settings": settings, "rows": summary}, indent=2)),
        ("ablation.md", markdown(summary)),
    ):
        with replacing(folder / name) as partial:
            partial.write_text(text + "\n")


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over seeds.

    Args:
        rows: One for each cell, kind of pairs, noise level and axis, as in the CSV.

    Returns:
        One row for each choice, kind of pairs and column: an axis (averaged over noise levels up to 0.8) or a noise
        level (averaged over axes). ``mean`` and ``spread`` (standard deviation over seeds) are in percent.
    """
    reliable = {f"{low:.1f}-{high:.1f}" for low, high in SIGMA_BINS if high <= RELIABLE}
    collected: dict[tuple[str, Any, str, str], dict[int, list[float]]] = {}
    for row in rows:
        columns = [row["sigma"]] + ([row["axis"]] if row["sigma"] in reliable else [])
        for column in columns:
            by_seed = collected.setdefault((row["factor"], row["value"], row["pairs_kind"], column), {})
            by_seed.setdefault(row["seed"], []).append(100 * row["accuracy"])
    summary = []
    for (factor, value, kind, column), by_seed in collected.items():
        means = [statistics.mean(values) for values in by_seed.values()]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        summary.append(
            {
                "factor": factor,
                "value": value,
                "pairs_kind": kind,
                "column": column,
                "mean": round(statistics.mean(means), 2),
                "spread": round(spread, 2),
                "seeds": len(means),
            }
        )
    return summary


def markdown(summary: Sequence[dict[str, Any]]) -> str:
    """Lay the summary out, one table for each kind of pairs."""
    columns = [*AXES, *(f"{low:.1f}-{high:.1f}" for low, high in SIGMA_BINS)]
    lines = []
    for kind in KINDS:
        lines += [f"Held-out pairs `{kind}`, percent ranked as the oracle ranks them, mean ± spread over seeds:", ""]
        headings = [f"{axis} (σ ≤ {RELIABLE:g})" for axis in AXES] + [f"σ {level}" for level in columns[len(AXES) :]]
        lines += [f"| choice | {' | '.join(headings)} | seeds |", f"|---|{'---|' * (len(columns) + 1)}"]
        table: dict[str, dict[str, dict[str, Any]]] = {}
        for row in summary:
            if row["pairs_kind"] == kind:
                choice = "default" if row["factor"] == "default" else f"{row['factor']}: {row['value']}"
                table.setdefault(choice, {})[row["column"]] = row
        for choice, cells_of in table.items():
            values = [
                f"{cells_of[name]['mean']:.1f} ± {cells_of[name]['spread']:.1f}"
                for name in columns
                if name in cells_of
            ]
            lines.append(f"| {choice} | {' | '.join(values)} | {next(iter(cells_of.values()))['seeds']} |")
        lines.append("")
    return "\n".join(lines).rstrip()
