"""Train the noise-aware latent reward on preference pairs that the oracle labels."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrg_sampler.flow import noised
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.shapes.oracle import ATTRIBUTE_WEIGHTS, AXES
from nrg_sampler.shapes.scenes import ATTRIBUTES, SIZES, Prompt, caption, split_of
from nrg_sampler.shapes.train.base import TrainingAttention, fixed_length, new_optimizers
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.pool import ATTRIBUTE_ORDER, Pool, rendered_pool, sampled_pool
from nrg_sampler.shapes.train.text import encode_text
from nrg_sampler.training.ensemble import LEVEL_PULL, bootstrap_weights, level_spread
from nrg_sampler.training.losses import K, bradley_terry_with_ties

if TYPE_CHECKING:
    from diffusers import WanPipeline

NUM_BLOCKS = 2  # of the base model's 8
NUM_MEMBERS = 1  # more make an ensemble, each taught by its own bootstrap sample of the prompts
GROUP = 4  # clips under one prompt and one noise: six pairs for four forward passes
ANNOTATOR_NOISE = 0.25  # standard deviation of a rater's error, in standard deviations of a score over the pool
TIE = 0.25  # smaller perceived differences are called a tie, same unit
SLOPE = math.log(K) / TIE  # logits per standard deviation: a tie is as wide in the likelihood as for the rater
DISTURBANCE = 8.0  # largest norm of a move along the final reward's gradient; clips have norms of about 85
SCORE_WEIGHT = 0.5  # of the error in the scores themselves, beside the pairs, in the final reward
COMBINATION = 3  # the first three attributes, (shape, colour, motion), are what the splits hold out
FIRST_POOLS = {"rendered": 10000, "sampled": 1600}
POOLS = {**FIRST_POOLS, "sampled-more": 2400, "guided": 3200}
FINAL_POOLS = {**POOLS, "guided-again": 1200}
GUIDED_BY = {"guided": "first-reward", "guided-again": "second-reward"}
HELD_OUT = {"rendered": 500, "sampled": 160, "guided": 160}  # clips of held-out pools
MIXTURE = {"same": 0.35, "alike": 0.25, "near": 0.2, "mixed": 0.2}  # shares of the kinds of groups in training
EDITED = 0.5  # share of the groups that are compared under a changed prompt
RECOMMENDED_SCALE = 200.0  # by gains and win rates on validation prompts
TEACHING_SCALE = 40.0  # of the rewards that guide clips for the next stage, in multiples up to 10
KEPT = 0.4  # share of the weights before the last stage in the final reward
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
    """Draws groups of clips to compare under one prompt.

    - ``"same"``: samples of that prompt, which is what guidance has to choose between;
    - ``"alike"``: clips made for its shape, colour and motion, with faults or without;
    - ``"near"``: clips made for it, and clips that differ in shape, colour or motion alone;
    - ``"mixed"``: two clips made for it if there are two, and any others.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.members: dict[int, list[int]] = {}
        self.alike: dict[tuple[int, ...], list[int]] = {}
        for row, (group, labels) in enumerate(zip(pool.group.tolist(), pool.labels.tolist(), strict=True)):
            self.members.setdefault(group, []).append(row)
            self.alike.setdefault(tuple(labels[:COMBINATION]), []).append(row)
        tables = pool.tables.split([len(OPTIONS[name]) for name in ATTRIBUTE_ORDER], dim=1)
        self.shown = torch.stack([table.argmax(dim=1) for table in tables], dim=1)  # (N, 5)
        self.sampled = [rows for rows in self.members.values() if len(rows) >= GROUP]
        own = scores(pool, torch.arange(len(pool.group)), pool.labels)
        self.origin, self.spread = own.mean(dim=0), own.std(dim=0)  # (3,) each

    def draw(self, kind: str, rng: random.Random) -> list[int]:
        """Return the rows of one group; the prompt is the first one's."""
        if kind == "same":
            return rng.sample(rng.choice(self.sampled), GROUP)
        first = rng.randrange(len(self.pool.group))
        combination = tuple(self.pool.labels[first, :COMBINATION].tolist())
        if kind == "alike":
            return [first, *rng.choices(self.alike[combination], k=GROUP - 1)]
        if kind == "near":
            near = [self.alike[other] for other in neighbours(combination) if other in self.alike]
            return [first, rng.choice(self.alike[combination]), *(rng.choice(rng.choice(near)) for _ in range(2))]
        same = [row for row in self.members[int(self.pool.group[first])] if row != first]
        kept = rng.sample(same, min(1, len(same)))
        return [first, *kept, *(rng.randrange(len(self.pool.group)) for _ in range(GROUP - 1 - len(kept)))]

    def draw_groups(self, kinds: Sequence[str], rng: random.Random, edited: float = 0.0) -> tuple[Tensor, Tensor]:
        """Rows ``(groups, GROUP)`` and prompt labels ``(groups, 5)``, one group for each of ``kinds``.

        ``edited`` is the share of groups whose prompt is changed, see `edit`.
        """
        chosen = torch.tensor([self.draw(kind, rng) for kind in kinds])
        labels = self.pool.labels[chosen[:, 0]]
        for group, rows in enumerate(chosen.tolist()):
            if rng.random() < edited:
                labels[group] = torch.tensor(self.edit(labels[group].tolist(), rows, rng))
        return chosen, labels

    def edit(self, labels: list[int], rows: list[int], rng: random.Random) -> list[int]:
        """Change a prompt toward what clips of its group show, or to anything, within the training split.

        Under the prompts they were made for, which of a few clips is the best can be learned by heart; under changed
        prompts it cannot, and the reward has to look.
        """
        while True:
            changed = list(labels)
            for place, name in enumerate(ATTRIBUTE_ORDER):
                chance = rng.random()
                if labels[place] == len(OPTIONS[name]) or chance < 0.5:
                    continue
                shown = int(self.shown[rng.choice(rows), place])
                changed[place] = shown if chance < 0.8 else rng.randrange(len(OPTIONS[name]))
            if split_of(to_prompt(changed)) == "train":
                return changed

    def ratings(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The oracle's scores of the clips under the group's prompt, standardised over the pool, ``(groups, GROUP, 3)``."""
        return (scores(self.pool, rows, labels[:, None].expand(-1, GROUP, -1)) - self.origin) / self.spread

    def preferences(self, rows: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """What an annotator who errs says of each pair and axis: 1, -1 or 0, ``(groups, pairs, 3)``."""
        value = self.ratings(rows, labels)
        difference = value[:, LEFT] - value[:, RIGHT]
        seen = difference + ANNOTATOR_NOISE * torch.randn(difference.shape, generator=generator)
        return seen.sign() * (seen.abs() > TIE)


def neighbours(combination: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Combinations that differ from one of (shape, colour, motion) indices in one place."""
    found = []
    for place, name in enumerate(ATTRIBUTE_ORDER[:COMBINATION]):
        for value in range(len(OPTIONS[name])):
            if value != combination[place]:
                found.append((*combination[:place], value, *combination[place + 1 :]))
    return found


def prepare_pools(
    folder: Path,
    pipe: WanPipeline,
    seed: int,
    counts: Mapping[str, int],
    guides: Mapping[str, LatentReward],
    held_out: Mapping[str, int] = HELD_OUT,
) -> Iterator[dict[str, float]]:
    """Make the training and held-out pools that are not there yet: ``rendered`` clips, and samples.

    Samples of the kinds in ``guides`` are guided by those rewards. Kinds that are not held out have a seed of their own.
    """
    planned = [("train", kind, count) for kind, count in counts.items()]
    planned += [("validation", kind, count) for kind, count in held_out.items() if kind in counts]
    for split, kind, count in planned:
        file = folder / f"pool-{kind}-{split}.safetensors"
        if file.exists():
            continue
        if kind == "rendered":
            run = rendered_pool(pipe, count, split, seed, file)
        else:
            own_seed = seed + (kind not in held_out)
            run = sampled_pool(pipe, count, GROUP, split, own_seed, file, reward=guides.get(kind))
        for done in run:
            yield {"step": 0, kind: done}


def train_first_reward(folder: Path, steps: int = 1600, **options: Any) -> Iterator[dict[str, float]]:
    """Train ``folder/first-reward``, whose guided samples the final reward learns from too; see `train_reward`."""
    yield from _train(folder, "first-reward", FIRST_POOLS, steps=steps, **options)


def train_compared_reward(folder: Path, name: str, steps: int = 800, **options: Any) -> Iterator[dict[str, float]]:
    """Train ``folder/clean-reward`` or ``folder/noised-reward`` on pairs, without noise or with it.

    They answer what noise in training is worth, so they differ in nothing else; see `train_reward` for the options.
    """
    sigma = (0.0, 0.0) if name == "clean-reward" else None
    yield from _train(folder, name, POOLS, steps=steps, sigma=sigma, **options)


def train_second_reward(folder: Path, steps: int = 2400, **options: Any) -> Iterator[dict[str, float]]:
    """Train ``folder/second-reward`` from ``clean-reward``; see `train_reward`.

    What a fault looks like is learned several times faster without noise, so noise comes second. The oracle's scores
    are taught beside the pairs: the order of two clips says nothing about how far apart they are, and a reward that
    exaggerates is the easier to over-optimise.

    Raises:
        FileNotFoundError: If ``folder/clean-reward`` is missing.
    """
    yield from _train(folder, "second-reward", POOLS, steps=steps, start="clean-reward", **options)


def train_third_reward(folder: Path, steps: int = 1200, **options: Any) -> Iterator[dict[str, float]]:
    """Train ``folder/third-reward`` from ``second-reward``, on clips that the latter has guided as well.

    They were guided at strengths that over-optimise it; see `train_reward`.

    Raises:
        FileNotFoundError: If ``folder/second-reward`` is missing.
    """
    yield from _train(folder, "third-reward", FINAL_POOLS, steps=steps, start="second-reward", **options)


def train_reward(folder: Path, steps: int = 1700, **options: Any) -> Iterator[dict[str, float]]:
    """Train ``folder/reward``, the final one, from ``third-reward``; needs the earlier stages.

    Half of all clips are moved along the reward's own gradient, see `disturbed`, so that it unlearns what guidance would
    exploit. That costs accuracy on clips that nobody moved; an average with the weights it started from gets the accuracy
    back and keeps most of the rest.

    Args:
        folder: Where the other stages saved their models.
        steps: Optimiser steps.
        **options: ``batch`` (clips a step, in groups of :data:`GROUP`), ``members`` of the ensemble, ``seed`` and ``device``.

    Raises:
        FileNotFoundError: If ``folder/third-reward`` is missing.

    Reference:
        Wortsman et al., 2022, arXiv:2109.01903 (averaging weights before and after robust fine-tuning).
    """
    yield from _train(
        folder, "reward", FINAL_POOLS, steps=steps, start="third-reward", disturbance=DISTURBANCE, kept=KEPT, **options
    )


def _train(
    folder: Path,
    name: str,
    counts: Mapping[str, int],
    steps: int,
    batch: int = 64,
    seed: int = 0,
    device: str = "cpu",
    members: int = NUM_MEMBERS,
    sigma: tuple[float, float] | None = None,
    start: str | None = None,
    disturbance: float = 0.0,
    kept: float = 0.0,
) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.assemble import assemble_pipeline

    if start is not None and not (folder / start).is_dir():
        raise FileNotFoundError(f"Expected {folder / start}, made by the stage `{start}`: run that one first.")
    score_weight = SCORE_WEIGHT if start else 0.0
    pipe = assemble_pipeline(folder).to(device)
    guides = {
        kind: LatentReward.from_pretrained(folder / guide).to(device)
        for kind, guide in GUIDED_BY.items()
        if kind in counts
    }
    yield from prepare_pools(folder, pipe, seed, counts, guides)
    pool = Pool.load(*(folder / f"pool-{kind}-train.safetensors" for kind in counts))
    sampler = PairSampler(pool)
    torch.manual_seed(seed)
    reward = LatentReward.from_transformer(
        pipe.transformer, NUM_BLOCKS, axes=AXES, text_axes=("TA",), num_token_reads=1, num_members=members
    ).to(device)
    if start is not None:
        reward.load_state_dict(LatentReward.from_pretrained(folder / start).state_dict())
    drawn = bootstrap_weights(int(pool.group.max()) + 1, members, seed)
    for block in reward.blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(TrainingAttention())

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + step)
        rows, labels = sampler.draw_groups(
            rng.choices(list(MIXTURE), list(MIXTURE.values()), k=batch // GROUP), rng, EDITED
        )
        wanted = sampler.preferences(rows, labels, generator).to(device)
        raw = rate(
            reward, pool, rows, labels, pipe, rng, generator, sigma, members=True, disturbance=disturbance
        )  # (groups, GROUP, M, 3)
        difference = raw[:, LEFT] - raw[:, RIGHT]
        unlikely = bradley_terry_with_ties(difference, wanted[:, :, None].expand_as(difference))
        counted = drawn[pool.group[rows[:, 0]]].to(device)  # (groups, M); the first clip's prompt is the group's
        loss_of_axis = (counted[:, None, :, None] * unlikely).mean(dim=(0, 1, 2))
        if score_weight:
            taught = sampler.ratings(rows, labels)
            taught = (taught + ANNOTATOR_NOISE * torch.randn(taught.shape, generator=generator)).to(device)
            # Least at E[score | noisy latents], see `losses.regression`; `SLOPE` turns logits into scores.
            error = (raw / SLOPE - taught[:, :, None]).square()
            loss_of_axis = loss_of_axis + score_weight * (counted[:, None, :, None] * error).mean(dim=(0, 1, 2))
        guess = difference.mean(dim=2).sign()
        right = ((guess == wanted) & (wanted != 0)).sum(dim=(0, 1)) / (wanted != 0).sum(dim=(0, 1))
        # Logits have no natural origin: a light pull to 0 keeps them where half precision is fine.
        pull = 1e-3 * raw.pow(2).mean() + LEVEL_PULL * level_spread(raw)
        return loss_of_axis.sum() + pull, dict(zip(AXES, right.tolist(), strict=True))

    settings = LoopSettings(steps, warmup=100, ema=0.998, seed=seed)
    yield from fit(reward, loss, new_optimizers(reward, lr=6e-4), settings, folder / f"{name}.pt")
    if start is not None and kept:
        average(reward, LatentReward.from_pretrained(folder / start).to(device), kept)
    held_out = Pool.load(*(folder / f"pool-{kind}-validation.safetensors" for kind in HELD_OUT if kind in counts))
    accuracy = {kind: accuracy_by_sigma(reward, held_out, pipe, seed, kind) for kind in ("mixed", "same")}
    (folder / f"{name}-accuracy.json").write_text(json.dumps(accuracy, indent=2))
    scale = TEACHING_SCALE if name in GUIDED_BY.values() else RECOMMENDED_SCALE
    calibrate(reward, Pool.load(folder / "pool-sampled-train.safetensors"), pipe, seed, scale)
    reward.to("cpu").save_pretrained(folder / name)


@torch.no_grad()
def average(reward: LatentReward, before: LatentReward, share: float) -> None:
    """Move every weight of ``reward`` by ``share`` of the way to that of ``before``."""
    for own, other in zip(reward.parameters(), before.parameters(), strict=True):
        own.lerp_(other, share)


def rate(
    reward: LatentReward,
    pool: Pool,
    rows: Tensor,
    labels: Tensor,
    pipe: WanPipeline,
    rng: random.Random,
    generator: torch.Generator,
    sigma: tuple[float, float] | None,
    members: bool = False,
    disturbance: float = 0.0,
) -> Tensor:
    """Raw rewards ``(groups, GROUP, 3)``, or ``(groups, GROUP, members, 3)``; a group shares prompt, noise and sigma.

    With a ``disturbance`` the noisy clips are moved first, see `disturbed`.
    """
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
    latents = noised(clean, noise, noise_level)
    with torch.autocast(device.type, torch.bfloat16):
        if disturbance:
            latents = disturbed(reward, latents, noise_level, conditioning, disturbance, generator)
        raw: Tensor = reward(latents, noise_level, conditioning, members)
    grouped: Tensor = raw.float().unflatten(0, (groups, GROUP))
    return grouped


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
    reward: LatentReward, pool: Pool, pipe: WanPipeline, seed: int, recommended_scale: float, groups: int = 100
) -> None:
    """Align the members and store the reward's mean and spread over nearly clean samples of the base model."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    chosen, _ = PairSampler(pool).draw_groups(["same"] * groups, rng)
    raw = torch.cat(
        [
            rate(reward, pool, rows, pool.labels[rows[:, 0]], pipe, rng, generator, (0.02, 0.1), members=True)
            for rows in chosen.split(16)
        ]
    ).flatten(0, 1)
    raw = reward.align_members(raw).mean(dim=1)  # (clips, 3)
    reward.register_to_config(
        mean=raw.mean(dim=0).tolist(), std=raw.std(dim=0).tolist(), recommended_scale=recommended_scale
    )
