"""Train the noise-aware latent reward on preference pairs that the oracle labels, one lesson after the other."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nrg_sampler.flow import noised
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import caption
from nrg_sampler.shapes.train.attributes import AttributeReader
from nrg_sampler.shapes.train.base import TrainingAttention, new_optimizers
from nrg_sampler.shapes.train.groups import (
    ANNOTATOR_NOISE,
    EDITED,
    LEFT,
    MIXTURE,
    RIGHT,
    TIE,
    PairSampler,
    to_prompt,
)
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.pool import GROUP, Pool, prepare_pools
from nrg_sampler.shapes.train.text import encode_text
from nrg_sampler.training.ensemble import LEVEL_PULL, bootstrap_weights, level_spread
from nrg_sampler.training.losses import K, bradley_terry_with_ties

if TYPE_CHECKING:
    from diffusers import WanPipeline

NUM_BLOCKS = 2  # of the base model's 8
NUM_MEMBERS = 1  # more make an ensemble, each taught by its own bootstrap sample of the prompts
SLOPE = math.log(K) / TIE  # logits per standard deviation: a tie is as wide in the likelihood as for the rater
SCORE_WEIGHT = 0.5  # of the error in the scores themselves, beside the pairs
FIRST_POOLS = {"rendered": 10000, "sampled": 1600}
POOLS = {**FIRST_POOLS, "sampled-more": 2400, "guided": 3200}
FINAL_POOLS = {**POOLS, "guided-again": 1200}
GUIDED_BY = {"guided": "first-reward", "guided-again": "second-reward"}
HELD_OUT = {"rendered": 500, "sampled": 160, "guided": 160}  # clips of held-out pools
# By gains on validation prompts. The gradients of picture and motion are good where the noise is strong, that of the
# prompt where little of it is left; elsewhere they raise the reward more than the clip.
RECOMMENDED = {
    "recommended_scale": (100.0, 100.0, 200.0),
    "recommended_damping": (0.0, 0.0, 2.5),
    "recommended_fading": (4.0, 4.0, 0.0),
}
TEACHING = {"recommended_scale": 40.0}  # of the rewards that guide clips for the next lesson, in multiples up to 10
SIGMA_BINS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))


@dataclass(frozen=True)
class Lesson:
    """What one stage teaches a reward.

    Args:
        pools: Kinds of clips and how many of each.
        steps: Optimiser steps.
        start: The stage whose reward it goes on from, from then on with the oracle's scores beside the pairs: the order of
            two clips says nothing about how far apart they are, and a reward that exaggerates is the easier to
            over-optimise. ``None`` starts from the blocks of the video model, with pairs alone.
        sigma: Range of noise levels.
        disturbance: Largest norm of a move along the reward's own gradient, see `disturbed`; clips have norms of about
            85.
        kept: Share of the weights before the lesson that an average keeps afterwards.
        prompts: How many prompts each group of clips is rated under: its own and changed ones.
        naming: Weight of the exercise of naming what a clip shows, see `AttributeReader`.
    """

    pools: Mapping[str, int]
    steps: int
    start: str | None = None
    sigma: tuple[float, float] = (0.0, 1.0)
    disturbance: float = 0.0
    kept: float = 0.0
    prompts: int = 1
    naming: float = 0.0


LESSONS = {
    # Guides the clips that all later lessons but the compared ones see as well.
    "first-reward": Lesson(FIRST_POOLS, 1600),
    # These two answer what noise in training is worth, so they differ in nothing else.
    "clean-reward": Lesson(POOLS, 800, sigma=(0.0, 0.0)),
    "noised-reward": Lesson(POOLS, 800),
    # What a fault looks like is learned several times faster without noise, so noise comes second.
    "second-reward": Lesson(POOLS, 2400, start="clean-reward"),
    # With clips that the one before has guided, at strengths that over-optimise it.
    "third-reward": Lesson(FINAL_POOLS, 1200, start="second-reward"),
    # Unlearns what guidance would exploit. That costs accuracy on clips that nobody moved; an average with the weights
    # before gets the accuracy back and keeps most of the rest (Wortsman et al., 2022, arXiv:2109.01903).
    "robust-reward": Lesson(FINAL_POOLS, 1700, start="third-reward", disturbance=8.0, kept=0.4),
    # Learns to read: which of a few clips fits a prompt best can hardly be learned by heart under several prompts.
    "reward": Lesson(FINAL_POOLS, 3300, start="robust-reward", disturbance=8.0, prompts=4, naming=0.2),
}


def train_reward(
    folder: Path,
    name: str = "reward",
    steps: int | None = None,
    batch: int = 64,
    seed: int = 0,
    device: str = "cpu",
    members: int = NUM_MEMBERS,
) -> Iterator[dict[str, float]]:
    """Train ``folder/NAME`` by the lesson of that name and grade it on held-out pairs.

    Args:
        folder: Where the other stages saved their models.
        name: One of :data:`LESSONS`; ``"reward"`` is the last and the one that is bundled.
        steps: Optimiser steps; by default those of the lesson.
        batch: Clips a step, in groups of :data:`GROUP`.
        seed: Seed of everything.
        device: Where to train.
        members: Of the ensemble.

    Raises:
        FileNotFoundError: If the reward that the lesson starts from is missing.
    """
    from nrg_sampler.shapes.train.assemble import assemble_pipeline

    lesson = LESSONS[name]
    if lesson.start is not None and not (folder / lesson.start).is_dir():
        raise FileNotFoundError(
            f"Expected {folder / lesson.start}, made by the stage `{lesson.start}`: run that one first."
        )
    pipe = assemble_pipeline(folder).to(device)
    guides = {
        kind: LatentReward.from_pretrained(folder / guide).to(device)
        for kind, guide in GUIDED_BY.items()
        if kind in lesson.pools
    }
    yield from prepare_pools(folder, pipe, seed, lesson.pools, guides, HELD_OUT)
    pool = Pool.load(*(folder / f"pool-{kind}-train.safetensors" for kind in lesson.pools))
    sampler = PairSampler(pool)
    torch.manual_seed(seed)
    reward = LatentReward.from_transformer(
        pipe.transformer, NUM_BLOCKS, axes=AXES, text_axes=("TA",), num_token_reads=1, num_members=members
    ).to(device)
    before = None if lesson.start is None else LatentReward.from_pretrained(folder / lesson.start).to(device)
    if before is not None:
        reward.load_state_dict(before.state_dict())
    for block in reward.blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(TrainingAttention())
    trained = nn.ModuleDict({"reward": reward})
    if lesson.naming:
        trained["reader"] = AttributeReader(reward.queries.shape[-1]).to(device)
    drawn = bootstrap_weights(int(pool.group.max()) + 1, members, seed)
    shown = sampler.shown.to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + step)
        kinds = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=batch // GROUP)
        rows, labels = sampler.draw_groups(kinds, rng, EDITED)
        asked = sampler.further_prompts(rows, labels, lesson.prompts, rng)  # (groups, prompts, 5)
        rated, wished = rows.repeat_interleave(lesson.prompts, dim=0), asked.flatten(0, 1)
        wanted = sampler.preferences(rated, wished, generator).to(device)
        raw, features = rate_groups(reward, pool, rows, asked, pipe, rng, generator, lesson.sigma, lesson.disturbance)
        raw = raw.flatten(0, 1)  # (groups * prompts, GROUP, M, 3)
        difference = raw[:, LEFT] - raw[:, RIGHT]
        unlikely = bradley_terry_with_ties(difference, wanted[:, :, None].expand_as(difference))
        counted = drawn[pool.group[rated[:, 0]]].to(device)  # (groups * prompts, M); the first clip's prompt counts
        loss_of_axis = (counted[:, None, :, None] * unlikely).mean(dim=(0, 1, 2))
        if before is not None:
            taught = sampler.ratings(rated, wished)
            taught = (taught + ANNOTATOR_NOISE * torch.randn(taught.shape, generator=generator)).to(device)
            # Least at E[score | noisy latents], see `losses.regression`; `SLOPE` turns logits into scores.
            error = (raw / SLOPE - taught[:, :, None]).square()
            loss_of_axis = loss_of_axis + SCORE_WEIGHT * (counted[:, None, :, None] * error).mean(dim=(0, 1, 2))
        guess = difference.mean(dim=2).sign()
        right = ((guess == wanted) & (wanted != 0)).sum(dim=(0, 1)) / (wanted != 0).sum(dim=(0, 1))
        numbers = dict(zip(AXES, right.tolist(), strict=True))
        # Logits have no natural origin: a light pull to 0 keeps them where half precision is fine.
        total = loss_of_axis.sum() + 1e-3 * raw.pow(2).mean() + LEVEL_PULL * level_spread(raw)
        if lesson.naming:
            misnamed, named = trained["reader"](features, shown[rows.flatten()])
            total, numbers = total + lesson.naming * misnamed, numbers | named
        return total, numbers

    settings = LoopSettings(steps or lesson.steps, warmup=100, ema=0.998, seed=seed)
    yield from fit(trained, loss, new_optimizers(trained, lr=6e-4), settings, folder / f"{name}.pt")
    if before is not None and lesson.kept:
        average(reward, before, lesson.kept)
    held_out = Pool.load(
        *(folder / f"pool-{kind}-validation.safetensors" for kind in HELD_OUT if kind in lesson.pools)
    )
    accuracy = {kind: accuracy_by_sigma(reward, held_out, pipe, seed, kind) for kind in ("mixed", "same")}
    (folder / f"{name}-accuracy.json").write_text(json.dumps(accuracy, indent=2))
    recommended = TEACHING if name in GUIDED_BY.values() else RECOMMENDED
    calibrate(reward, Pool.load(folder / "pool-sampled-train.safetensors"), pipe, seed, recommended)
    reward.to("cpu").save_pretrained(folder / name)


@torch.no_grad()
def average(reward: LatentReward, before: LatentReward, share: float) -> None:
    """Move every weight of ``reward`` by ``share`` of the way to that of ``before``."""
    for own, other in zip(reward.parameters(), before.parameters(), strict=True):
        own.lerp_(other, share)


def rate_groups(
    reward: LatentReward,
    pool: Pool,
    rows: Tensor,
    labels: Tensor,
    pipe: WanPipeline,
    rng: random.Random,
    generator: torch.Generator,
    sigma: tuple[float, float],
    disturbance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Rate groups of noisy clips, each under several prompts; a group shares noise and sigma.

    Args:
        reward: What rates.
        pool: The clips.
        rows: Which of them, shape ``(groups, GROUP)``.
        labels: Attribute indices of the prompts, shape ``(groups, P, 5)``.
        pipe: Encodes the prompts.
        rng: Draws their wording.
        generator: Draws noise levels and noise.
        sigma: Range of noise levels.
        disturbance: The noisy clips are moved first, see `disturbed`, under the first prompt.

    Returns:
        Raw rewards of the members ``(groups, P, GROUP, M, 3)`` and the features of the trunk ``(groups * GROUP, N, D)``.
    """
    groups, prompts = labels.shape[:2]
    device = reward.queries.device
    clean = pool.latents[rows.flatten()].float().to(device)
    low, high = sigma
    noise_level = (low + (high - low) * torch.rand(groups, generator=generator)).to(device).repeat_interleave(GROUP)
    noise = torch.randn(groups, *clean.shape[1:], generator=generator).to(device).repeat_interleave(GROUP, dim=0)
    texts = [caption(to_prompt(row), rng) for row in labels.flatten(0, 1).tolist()]
    with torch.no_grad():
        encoded = encode_text(pipe.tokenizer, pipe.text_encoder, texts)
    embeds, mask = (part.unflatten(0, (groups, prompts)).repeat_interleave(GROUP, dim=0) for part in encoded)
    asked = [Conditioning(embeds[:, index], mask[:, index]) for index in range(prompts)]
    latents = noised(clean, noise, noise_level)
    with torch.autocast(device.type, torch.bfloat16):
        if disturbance:
            latents = disturbed(reward, latents, noise_level, asked[0], disturbance, generator)
        features = reward.features(latents, noise_level, asked[0])
        raw = [reward.score_features(features, conditioning, members=True) for conditioning in asked]
    return torch.stack([each.float().unflatten(0, (groups, GROUP)) for each in raw], dim=1), features


def rate(
    reward: LatentReward,
    pool: Pool,
    rows: Tensor,
    labels: Tensor,
    pipe: WanPipeline,
    rng: random.Random,
    generator: torch.Generator,
    sigma: tuple[float, float],
) -> Tensor:
    """Raw rewards ``(groups, GROUP, 3)`` of groups under one prompt each, ``(groups, 5)``; see `rate_groups`."""
    raw, _ = rate_groups(reward, pool, rows, labels[:, None], pipe, rng, generator, sigma)
    return raw[:, 0].mean(dim=2)


def disturbed(
    reward: LatentReward,
    latents: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    largest: float,
    generator: torch.Generator,
) -> Tensor:
    """Move noisy latents along the reward's own gradient, up or down, in a mix of the axes of each clip's own.

    Such a step raises the reward while hardly changing the clip. A reward that is taught the scores of the clip all the
    same learns to have gradients that change something.

    Args:
        reward: The reward as it is now.
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        sigma: Their noise levels, shape ``(B,)``.
        conditioning: Their prompts.
        largest: One clip in two stays, the others move by a norm that is uniform between 0 and this.
        generator: Draws mixes and norms.

    Returns:
        Moved latents, shape as ``latents``.

    Reference:
        Kawar et al., 2022, arXiv:2208.08664 (guidance by a robust classifier).
    """
    mix = torch.randn(len(latents), len(AXES), generator=generator).to(latents.device)
    norms = largest * (2 * torch.rand(len(latents), generator=generator) - 1).clamp(min=0).to(latents.device)
    leaf = latents.detach().requires_grad_()
    (grad,) = torch.autograd.grad((mix * reward(leaf, sigma, conditioning)).sum(), leaf)
    direction = grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)
    moved: Tensor = latents + norms.view(-1, 1, 1, 1, 1) * direction
    return moved


@torch.no_grad()
def accuracy_by_sigma(
    reward: LatentReward, pool: Pool, pipe: WanPipeline, seed: int, kind: str, groups: int = 400
) -> dict[str, object]:
    """Share of held-out pairs ranked as the oracle ranks them, per axis and sigma bin; a tied prediction is wrong.

    The kinds of pairs are those of `PairSampler`. Pairs whose oracle scores differ by less than the tie width are left out, as ties are in published figures.
    """
    sampler = PairSampler(pool)
    table: dict[str, object] = {}
    for bounds in SIGMA_BINS:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        rows, labels = sampler.draw_groups([kind] * groups, rng)
        value = sampler.ratings(rows, labels)
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
def calibrate(
    reward: LatentReward,
    pool: Pool,
    pipe: WanPipeline,
    seed: int,
    recommended: Mapping[str, object],
    groups: int = 400,
) -> None:
    """Align the members and store the reward's mean and spread over nearly clean samples of the base model."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    chosen, _ = PairSampler(pool).draw_groups(["same"] * groups, rng)
    raw = torch.cat(
        [
            rate_groups(reward, pool, rows, pool.labels[rows[:, :1]], pipe, rng, generator, (0.02, 0.1))[0]
            for rows in chosen.split(16)
        ]
    ).flatten(0, 2)  # (clips, M, 3)
    raw = reward.align_members(raw).mean(dim=1)  # (clips, 3)
    reward.register_to_config(mean=raw.mean(dim=0).tolist(), std=raw.std(dim=0).tolist(), **recommended)
