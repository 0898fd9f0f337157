"""Train the noise-aware latent reward on preference pairs that the oracle labels, one stage after the other."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nrg_sampler.json_text import to_json
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.train.attributes import AttributeClassifier
from nrg_sampler.shapes.train.curriculum import CURRICULUM, GUIDED_BY, HELD_OUT
from nrg_sampler.shapes.train.groups import ANNOTATOR_NOISE, EDITED, LEFT, MIXTURE, RIGHT, TIE, PairSampler
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.origin import models_in
from nrg_sampler.shapes.train.pool import GROUP, Pool, prepare_pools
from nrg_sampler.shapes.train.rating import accuracy_by_sigma, calibrate, rate_groups
from nrg_sampler.shapes.train.train_base import TrainingAttention, new_optimizers
from nrg_sampler.training.ensemble import LEVEL_PULL, bootstrap_weights, level_spread
from nrg_sampler.training.losses import K, bradley_terry_with_ties
from nrg_sampler.training.trainer import PULL

NUM_BLOCKS = 2  # of the base model's
NUM_MEMBERS = 1  # more make an ensemble, each trained on its own bootstrap sample of the prompts
SLOPE = math.log(K) / TIE  # logits per standard deviation: a tie is as wide in the likelihood as for the annotator
SCORE_WEIGHT = 0.5  # of the error in the scores themselves, beside the pairs
# Chosen by gains on validation prompts. The gradients of VQ and MQ are reliable at high noise, that of TA at low
# noise; elsewhere they raise the reward more than the clip's quality.
RECOMMENDED = {
    "recommended_scale": (100.0, 100.0, 200.0),
    "recommended_damping": (0.0, 0.0, 2.5),
    "recommended_fading": (4.0, 4.0, 0.0),
}
GUIDING = {"recommended_scale": 40.0}  # of the rewards that guide clips for later stages, at up to 10 times this scale


def train_reward(
    folder: Path,
    name: str = "reward",
    steps: int | None = None,
    batch: int = 64,
    seed: int = 0,
    device: str = "cpu",
    members: int = NUM_MEMBERS,
) -> Iterator[dict[str, float]]:
    """Train ``folder/NAME`` by the stage of that name and grade it on held-out pairs.

    Args:
        folder: Where the other stages saved their models.
        name: One of :data:`CURRICULUM`; ``"reward"`` is the last and the one that is bundled.
        steps: Optimiser steps; by default those of the stage.
        batch: Clips a step, in groups of :data:`GROUP`.
        seed: Seed of all randomness.
        device: Where to train.
        members: Members of the ensemble.

    Yields:
        Numbers of the preparation and of each training step.

    Raises:
        FileNotFoundError: If the reward that the stage starts from is missing.
    """
    from nrg_sampler.shapes.train.assemble import assemble_pipeline

    stage = CURRICULUM[name]
    if stage.start is not None and not (folder / stage.start).is_dir():
        raise FileNotFoundError(
            f"Expected {folder / stage.start}, made by the stage `{stage.start}`: run that one first."
        )
    pipe = assemble_pipeline(folder).to(device)
    guides = {
        kind: LatentReward.from_pretrained(folder / guide).to(device)
        for kind, guide in GUIDED_BY.items()
        if kind in stage.pools
    }
    yield from prepare_pools(folder, pipe, seed, stage.pools, guides, HELD_OUT)
    pool = Pool.load(*(folder / f"pool-{kind}-train.safetensors" for kind in stage.pools))
    sampler = PairSampler(pool)
    torch.manual_seed(seed)
    reward = LatentReward.from_transformer(
        pipe.transformer, NUM_BLOCKS, axes=AXES, text_axes=("TA",), num_token_reads=1, num_members=members
    ).to(device)
    before = None if stage.start is None else LatentReward.from_pretrained(folder / stage.start).to(device)
    if before is not None:
        reward.load_state_dict(before.state_dict())
    for block in reward.blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(TrainingAttention())
    trained = nn.ModuleDict({"reward": reward})
    if stage.naming:
        # The key stands in the checkpoints of earlier runs.
        trained["reader"] = AttributeClassifier(reward.queries.shape[-1]).to(device)
    drawn = bootstrap_weights(int(pool.group.max()) + 1, members, seed)
    shown = sampler.shown.to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + step)
        kinds = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=batch // GROUP)
        rows, labels = sampler.draw_groups(kinds, rng, EDITED)
        prompts = sampler.further_prompts(rows, labels, stage.prompts, rng)  # (groups, prompts, 5)
        rated, flat_prompts = rows.repeat_interleave(stage.prompts, dim=0), prompts.flatten(0, 1)
        preference = sampler.preferences(rated, flat_prompts, generator).to(device)
        raw, features = rate_groups(reward, pool, rows, prompts, pipe, rng, generator, stage.sigma, stage.disturbance)
        raw = raw.flatten(0, 1)  # (groups * prompts, GROUP, M, 3)
        difference = raw[:, LEFT] - raw[:, RIGHT]
        pair_loss = bradley_terry_with_ties(difference, preference[:, :, None].expand_as(difference))
        weights = drawn[pool.group[rated[:, 0]]].to(device)  # (groups * prompts, M), by the first clip's prompt
        loss_of_axis = (weights[:, None, :, None] * pair_loss).mean(dim=(0, 1, 2))
        if before is not None:
            scores = sampler.ratings(rated, flat_prompts)
            scores = (scores + ANNOTATOR_NOISE * torch.randn(scores.shape, generator=generator)).to(device)
            # Minimal at E[score | noisy latents], see `losses.regression`; `SLOPE` turns logits into scores.
            error = (raw / SLOPE - scores[:, :, None]).square()
            loss_of_axis = loss_of_axis + SCORE_WEIGHT * (weights[:, None, :, None] * error).mean(dim=(0, 1, 2))
        predicted, decided = difference.mean(dim=2).sign(), preference != 0
        accuracy = ((predicted == preference) & decided).sum(dim=(0, 1)) / decided.sum(dim=(0, 1))
        numbers = dict(zip(AXES, accuracy.tolist(), strict=True))
        # Logits have no natural origin: a light pull to 0 keeps them where half precision is accurate.
        total = loss_of_axis.sum() + PULL * raw.pow(2).mean() + LEVEL_PULL * level_spread(raw)
        if stage.naming:
            misnamed, named = trained["reader"](features, shown[rows.flatten()])
            total, numbers = total + stage.naming * misnamed, numbers | named
        return total, numbers

    start = () if stage.start is None else (stage.start,)
    pools = (f"pool-{kind}-train.safetensors" for kind in stage.pools)
    about = {"batch": batch, "members": members, **models_in(folder, "transformer", *start, *pools)}
    settings = LoopSettings(steps or stage.steps, warmup=100, ema=0.998, seed=seed, about=about)
    yield from fit(trained, loss, new_optimizers(trained, lr=6e-4), settings, folder / f"{name}.pt")
    if before is not None and stage.kept:
        average(reward, before, stage.kept)
    held_out = Pool.load(*(folder / f"pool-{kind}-validation.safetensors" for kind in HELD_OUT if kind in stage.pools))
    accuracy = {kind: accuracy_by_sigma(reward, held_out, pipe, seed, kind) for kind in ("mixed", "same")}
    (folder / f"{name}-accuracy.json").write_text(to_json(accuracy, indent=2))
    recommended = GUIDING if name in GUIDED_BY.values() else RECOMMENDED
    calibrate(reward, Pool.load(folder / "pool-sampled-train.safetensors"), pipe, seed, recommended)
    reward.to("cpu").save_pretrained(folder / name)


@torch.no_grad()
def average(reward: LatentReward, before: LatentReward, share: float) -> None:
    """Move every weight of ``reward`` by ``share`` of the way to that of ``before``."""
    for own, other in zip(reward.parameters(), before.parameters(), strict=True):
        own.lerp_(other, share)
