"""Train the noise-aware latent reward on preference pairs that the oracle labels."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nrg_sampler.flow import noised
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.shapes.oracle import ATTRIBUTE_WEIGHTS, AXES
from nrg_sampler.shapes.scenes import ATTRIBUTES, SIZES, Prompt, caption
from nrg_sampler.shapes.train.base import TrainingAttention, fixed_length, new_optimizers
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.pool import ATTRIBUTE_ORDER, Pool, rendered_pool, sampled_pool
from nrg_sampler.shapes.train.text import encode_text
from nrg_sampler.training.losses import bradley_terry_with_ties

if TYPE_CHECKING:
    from diffusers import WanPipeline

NUM_BLOCKS = 2  # of the base model's 8
GROUP = 4  # clips compared with each other under one prompt and one noise: six pairs for four forward passes
ANNOTATOR_NOISE = 0.25  # in standard deviations of a score over the pool
TIE = 0.25  # smaller perceived differences are called a tie, same unit
RECOMMENDED_SCALE = 20.0  # by win rates on validation prompts
SIGMA_BINS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))
OPTIONS = {**ATTRIBUTES, "size": tuple(SIZES)}
LEFT, RIGHT = zip(*combinations(range(GROUP), 2))


def to_prompt(row: list[int]) -> Prompt:
    """Turn a row of attribute indices back into a prompt."""
    values = {name: (*OPTIONS[name], None)[index] for name, index in zip(ATTRIBUTE_ORDER, row, strict=True)}
    return Prompt(**values)  # type: ignore[arg-type]


def scores(pool: Pool, rows: Tensor, labels: Tensor) -> Tensor:
    """Oracle VQ, MQ and TA of clips under prompts that need not be their own, ``(..., 3)``.

    Args:
        pool: The clips.
        rows: Which of them, any shape.
        labels: Attribute indices of the prompts, shape ``(*rows.shape, 5)``.
    """
    total = weight = torch.zeros(rows.shape)
    start = 0
    for index, name in enumerate(ATTRIBUTE_ORDER):
        size = len(OPTIONS[name])
        asked = labels[..., index]
        table = pool.tables[rows, start : start + size]
        fit_of_value = table.gather(-1, asked.clamp(max=size - 1)[..., None])[..., 0]
        share = ATTRIBUTE_WEIGHTS[name] * (asked < size)
        total, weight = total + share * fit_of_value, weight + share
        start += size
    alignment = pool.quality[rows, 2] * total / weight
    return torch.stack([pool.quality[rows, 0], pool.quality[rows, 1], alignment], dim=-1)


class PairSampler:
    """Draws groups of clips to compare under one prompt: mostly clips made for it, some made for others."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.members: dict[int, list[int]] = {}
        for row, group in enumerate(pool.group.tolist()):
            self.members.setdefault(group, []).append(row)
        own = scores(pool, torch.arange(len(pool.group)), pool.labels)
        self.spread = own.std(dim=0)  # (3,)

    def draw(self, groups: int, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Rows ``(groups, GROUP)`` and prompt labels ``(groups, 5)``."""
        rows = []
        for _ in range(groups):
            first = rng.randrange(len(self.pool.group))
            same = [row for row in self.members[int(self.pool.group[first])] if row != first]
            rng.shuffle(same)
            kept = same[: GROUP - 1] if rng.random() < 0.7 else same[:1]
            rows.append([first, *kept, *(rng.randrange(len(self.pool.group)) for _ in range(GROUP - 1 - len(kept)))])
        chosen = torch.tensor(rows)
        return chosen, self.pool.labels[chosen[:, 0]]

    def preferences(self, rows: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """1, -1 or 0 for each pair and axis, ``(groups, pairs, 3)``; with a generator the annotator errs."""
        value = scores(self.pool, rows, labels[:, None].expand(-1, GROUP, -1)) / self.spread
        difference = value[:, LEFT] - value[:, RIGHT]
        if generator is None:
            return difference.sign()
        seen = difference + ANNOTATOR_NOISE * torch.randn(difference.shape, generator=generator)
        return seen.sign() * (seen.abs() > TIE)


def prepare_pools(
    folder: Path, pipe: WanPipeline, seed: int, rendered: int, sampled: int
) -> Iterator[dict[str, float]]:
    """Make the training and held-out pools that are not there yet."""
    for split, share in (("train", 1.0), ("validation", 0.15)):
        file = folder / f"pool-rendered-{split}.safetensors"
        if not file.exists():
            for count in rendered_pool(pipe, int(rendered * share), split, seed, file):
                yield {"step": 0, "rendered": count}
        file = folder / f"pool-sampled-{split}.safetensors"
        if not file.exists():
            for count in sampled_pool(pipe, int(sampled * share), GROUP, split, seed, file):
                yield {"step": 0, "sampled": count}


def train_reward(
    folder: Path,
    steps: int = 1600,
    batch: int = 64,
    rendered: int = 1600,
    sampled: int = 1000,
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[dict[str, float]]:
    """Train on pairs of rendered and sampled clips and save ``folder/reward``; needs the earlier stages.

    Args:
        folder: Where the other stages saved their models.
        steps: Optimiser steps.
        batch: Clips a step, compared in groups of :data:`GROUP`.
        rendered: Rendered clips with faults in the training pool.
        sampled: Samples of the base model in the training pool.
        seed: Seed of everything.
        device: Where to train.
    """
    from nrg_sampler.shapes.train.assemble import assemble_pipeline

    pipe = assemble_pipeline(folder).to(device)
    pipe.set_progress_bar_config(disable=True)
    yield from prepare_pools(folder, pipe, seed, rendered, sampled)
    pool = Pool.load(*sorted(folder.glob("pool-*-train.safetensors")))
    sampler = PairSampler(pool)
    torch.manual_seed(seed)
    reward = LatentReward.from_transformer(pipe.transformer, NUM_BLOCKS, axes=AXES, text_axes=("TA",)).to(device)
    for block in reward.blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(TrainingAttention())

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + step)
        rows, labels = sampler.draw(batch // GROUP, rng)
        wanted = sampler.preferences(rows, labels, generator).to(device)
        raw = rate(reward, pool, rows, labels, pipe, rng, generator, sigma=None)  # (groups, GROUP, 3)
        difference = raw[:, LEFT] - raw[:, RIGHT]
        loss_of_axis = bradley_terry_with_ties(difference, wanted).mean(dim=(0, 1))
        right = ((difference.sign() == wanted) & (wanted != 0)).sum(dim=(0, 1)) / (wanted != 0).sum(dim=(0, 1))
        # Logits have no natural origin: a light pull to 0 keeps them where half precision is fine.
        return loss_of_axis.sum() + 1e-3 * raw.pow(2).mean(), dict(zip(AXES, right.tolist(), strict=True))

    settings = LoopSettings(steps, warmup=100, ema=0.998, seed=seed)
    yield from fit(reward, loss, new_optimizers(reward, lr=6e-4), settings, folder / "reward.pt")
    held_out = Pool.load(*sorted(folder.glob("pool-*-validation.safetensors")))
    accuracy = accuracy_by_sigma(reward, held_out, pipe, seed)
    (folder / "reward-accuracy.json").write_text(json.dumps(accuracy, indent=2))
    calibrate(reward, Pool.load(folder / "pool-sampled-train.safetensors"), pipe, seed)
    reward.to("cpu").save_pretrained(folder / "reward")


def rate(
    reward: LatentReward,
    pool: Pool,
    rows: Tensor,
    labels: Tensor,
    pipe: WanPipeline,
    rng: random.Random,
    generator: torch.Generator,
    sigma: tuple[float, float] | None,
) -> Tensor:
    """Raw rewards ``(groups, GROUP, 3)``; a group shares its prompt, its noise and its sigma."""
    groups = len(rows)
    device = reward.queries.device
    clean = pool.latents[rows.flatten()].float().to(device)
    low, high = sigma or (0.0, 1.0)
    noise_level = (low + (high - low) * torch.rand(groups, generator=generator)).to(device).repeat_interleave(GROUP)
    noise = torch.randn(groups, *clean.shape[1:], generator=generator).to(device).repeat_interleave(GROUP, dim=0)
    with torch.no_grad():
        texts = [caption(to_prompt(row), rng) for row in labels.tolist()]
        embeds, mask = fixed_length(*encode_text(pipe.tokenizer, pipe.text_encoder, texts))
    conditioning = Conditioning(embeds.repeat_interleave(GROUP, dim=0), mask.repeat_interleave(GROUP, dim=0))
    with torch.autocast(device.type, torch.bfloat16):
        raw: Tensor = reward(noised(clean, noise, noise_level), noise_level, conditioning)
    return raw.float().view(groups, GROUP, -1)


@torch.no_grad()
def accuracy_by_sigma(
    reward: LatentReward, pool: Pool, pipe: WanPipeline, seed: int, groups: int = 400
) -> dict[str, object]:
    """Share of held-out pairs ranked as the oracle ranks them, per axis and sigma bin; a tied prediction is wrong.

    Pairs whose oracle scores differ by less than the tie width are left out, as ties are in published figures.
    """
    sampler = PairSampler(pool)
    table: dict[str, object] = {}
    for bounds in SIGMA_BINS:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        rows, labels = sampler.draw(groups, rng)
        value = scores(pool, rows, labels[:, None].expand(-1, GROUP, -1)) / sampler.spread
        truth = value[:, LEFT] - value[:, RIGHT]
        raw = torch.cat(
            [
                rate(reward, pool, rows[at : at + 16], labels[at : at + 16], pipe, rng, generator, bounds)
                for at in range(0, groups, 16)
            ]
        ).cpu()
        guess = raw[:, LEFT] - raw[:, RIGHT]
        clear = truth.abs() > TIE
        right = (guess.sign() == truth.sign()) & clear
        table[f"{bounds[0]:.1f}-{bounds[1]:.1f}"] = {
            axis: {
                "accuracy": (right[..., index].sum() / clear[..., index].sum()).item(),
                "pairs": int(clear[..., index].sum()),
            }
            for index, axis in enumerate(AXES)
        }
    return table


@torch.no_grad()
def calibrate(reward: LatentReward, pool: Pool, pipe: WanPipeline, seed: int, groups: int = 100) -> None:
    """Store mean and standard deviation of the raw reward over nearly clean samples of the base model."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sampler = PairSampler(pool)
    starts = torch.tensor([rng.choice(list(sampler.members.values()))[:GROUP] for _ in range(groups)])
    raw = torch.cat(
        [
            rate(reward, pool, rows, pool.labels[rows[:, 0]], pipe, rng, generator, (0.02, 0.1))
            for rows in starts.split(16)
        ]
    ).flatten(0, 1)
    reward.register_to_config(
        mean=raw.mean(dim=0).tolist(), std=raw.std(dim=0).tolist(), recommended_scale=RECOMMENDED_SCALE
    )
