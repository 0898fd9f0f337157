"""Train the pixel judge, on clips, seeds and annotators that the reward is not trained on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nrg_sampler.files import replacing
from nrg_sampler.json_text import to_json
from nrg_sampler.runs.device import fast_autocast
from nrg_sampler.shapes.judge import PixelJudge
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import caption, vocabulary
from nrg_sampler.shapes.train.attributes import AttributeClassifier
from nrg_sampler.shapes.train.degrade import changed_picture
from nrg_sampler.shapes.train.groups import LEFT, RIGHT, TIE, PairSampler, to_prompt
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.pool import GROUP, Pool, decode_latents, measured, prepare_pools
from nrg_sampler.shapes.train.rating import rate
from nrg_sampler.shapes.train.train_base import new_optimizers
from nrg_sampler.shapes.train.train_text import CHOICES
from nrg_sampler.training.losses import LOSSES, Comparison
from nrg_sampler.training.scoring import NEARLY_CLEAN
from nrg_sampler.training.trainer import PULL

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from nrg_sampler.rewards.latent import LatentReward

OTHER_SEED = 7919  # added to the seed, so that no clip is one the reward was trained on
POOLS = {"rendered": 4000, "sampled": 1000, "faultless": 6000}
HELD_OUT = {"rendered": 400, "sampled": 100, "faultless": 300}
MIXTURE = {"same": 0.2, "alike": 0.2, "near": 0.4, "mixed": 0.2}  # more neighbours than the reward sees
CHANGED = 0.5  # share of the clips whose picture is changed after decoding
PROMPTS = 6  # that each group is graded under: its own and changed ones
ANNOTATOR_NOISE = 0.4  # in standard deviations of a score; the reward's annotator errs less
JUDGE_TIE = 0.15  # and calls a tie more often
FIRST, SECOND = zip(*combinations(range(PROMPTS), 2), strict=True)
TEXT_AXIS = AXES.index("TA")
KINDS = ("mixed", "same")
HELD_OUT_GROUPS = 400  # of four clips, for each kind of pairs
CALIBRATION_GROUPS = 100


def train_judge(
    folder: Path, steps: int = 4900, batch: int = 32, seed: int = 0, device: str = "cpu"
) -> Iterator[dict[str, float]]:
    """Train ``folder/judge`` and grade it on held-out pairs; needs the stages `vae` and `base`.

    Args:
        folder: Where the other stages saved their models.
        steps: Optimiser steps.
        batch: Clips a step, compared in groups of four.
        seed: Seed of all randomness.
        device: Where to train.
    """
    from nrg_sampler.shapes.train.assemble import assemble_pipeline

    pipe = assemble_pipeline(folder).to(device)
    own = folder / "judge-pools"
    own.mkdir(parents=True, exist_ok=True)
    yield from prepare_pools(own, pipe, seed + OTHER_SEED, POOLS, {}, HELD_OUT)
    for kind in POOLS:
        for split in ("train", "validation"):
            yield from _decode_pool(own, kind, split, pipe, seed)
    pool, pixels = _load(own, "train", POOLS)
    sampler = PairSampler(pool)
    torch.manual_seed(seed + OTHER_SEED)
    judge = PixelJudge(axes=AXES, text_axes=("TA",), words=vocabulary()).to(device)
    classifier = AttributeClassifier(judge.config.dim).to(device)
    shown = sampler.shown.to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random((seed + OTHER_SEED) * 1_000_003 + step)
        kinds = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=batch // GROUP)
        rows, own = sampler.draw_groups(kinds, rng)
        prompts = sampler.further_prompts(rows, own, PROMPTS, rng)
        raw, frames = grade_groups(judge, pixels, rows, prompts, rng)
        raw = raw.flatten(0, 1)  # (groups * PROMPTS, GROUP, 3)
        misnamed, named = classifier(frames, shown[rows.flatten()])
        value = sampler.ratings(rows.repeat_interleave(PROMPTS, dim=0), prompts.flatten(0, 1))
        preference = perceived(value[:, LEFT] - value[:, RIGHT], generator).to(device)
        first, second = raw[:, LEFT].flatten(0, 1), raw[:, RIGHT].flatten(0, 1)
        clip_loss = LOSSES["bradley-terry-ties"](Comparison(first, second, preference.flatten(0, 1)))
        # The same clip under two prompts: only the text distinguishes these.
        value, graded = (numbers.unflatten(0, (-1, PROMPTS))[..., TEXT_AXIS] for numbers in (value, raw))
        preference = perceived(value[:, FIRST] - value[:, SECOND], generator).to(device)
        first, second = (graded[:, chosen].flatten()[:, None] for chosen in (FIRST, SECOND))
        prompt_loss = LOSSES["bradley-terry-ties"](Comparison(first, second, preference.flatten()[:, None]))
        total = clip_loss.per_axis().sum() + prompt_loss.per_axis().sum() + misnamed + PULL * raw.pow(2).mean()
        return total, clip_loss.means() | named

    trained = nn.ModuleDict({"judge": judge, "reader": classifier})  # keys of the checkpoints of earlier runs
    settings = LoopSettings(steps, ema=0.998, seed=seed, about={"batch": batch})
    optimizers = new_optimizers(trained, lr=8e-4, weight_decay=0.05, layers=".layers.")
    yield from fit(trained, loss, optimizers, settings, folder / "judge.pt")
    reward = _reward(folder, device)
    held_out = _load(own, "validation", ("rendered", "sampled"))
    accuracy = {kind: held_out_accuracy(judge, *held_out, kind, seed, pipe, reward) for kind in KINDS}
    accuracy["reading"] = reading_accuracy(judge, *_load(own, "validation", ("faultless",)), seed)
    with replacing(folder / "judge-accuracy.json") as partial:
        partial.write_text(to_json(accuracy, indent=2) + "\n")
    calibrate_judge(judge, pool, pixels, seed)
    judge.to("cpu").save_pretrained(folder / "judge")


def _decode_pool(folder: Path, kind: str, split: str, pipe: WanPipeline, seed: int) -> Iterator[dict[str, float]]:
    """Decode the latents of a pool once, change the picture of half of the clips and measure those again.

    Written to ``pixels-{kind}-{split}.safetensors``: what latents cannot hold, such as fine noise, the judge would
    else never see.
    """
    file = folder / f"pixels-{kind}-{split}.safetensors"
    if file.exists():
        return
    rng = random.Random(f"changes/{kind}/{split}/{seed}")
    pool = Pool.load(folder / f"pool-{kind}-{split}.safetensors")
    done: list[Tensor] = []
    for part in torch.arange(len(pool.latents)).split(32):
        clips = decode_latents(pipe, pool.latents[part].float().to(pipe.device)).cpu()
        changed = torch.tensor([rng.random() < CHANGED for _ in part])
        if changed.any():
            clips[changed] = torch.cat([changed_picture(clip[None], rng) for clip in clips[changed]])
            pool.quality[part[changed]], pool.tables[part[changed]] = measured(clips[changed])
        done.append((clips * 255).round().byte())
        yield {"step": 0, "decoded": int(part[-1]) + 1}
    with replacing(file) as partial:
        save_file({"pixels": torch.cat(done), "quality": pool.quality, "tables": pool.tables}, partial)


def _load(folder: Path, split: str, kinds: Iterable[str]) -> tuple[Pool, Tensor]:
    """Pools as one, measured as decoded and changed, and their pixels, uint8, ``(N, 3, T, H, W)``."""
    stored = [load_file(folder / f"pixels-{kind}-{split}.safetensors") for kind in kinds]
    pixels, quality, tables = (torch.cat([part[name] for part in stored]) for name in ("pixels", "quality", "tables"))
    pool = Pool.load(*(folder / f"pool-{kind}-{split}.safetensors" for kind in kinds))
    return replace(pool, quality=quality, tables=tables), pixels


def _reward(folder: Path, device: str) -> LatentReward | None:
    from nrg_sampler.rewards.latent import LatentReward

    return LatentReward.from_pretrained(folder / "reward").to(device) if (folder / "reward").is_dir() else None


def perceived(difference: Tensor, generator: torch.Generator) -> Tensor:
    """Simulate the labels of the judge's own annotator from differences of scores: 1, -1 or 0."""
    seen = difference + ANNOTATOR_NOISE * torch.randn(difference.shape, generator=generator)
    return seen.sign() * (seen.abs() > JUDGE_TIE)


def grade_groups(
    judge: PixelJudge, pixels: Tensor, rows: Tensor, labels: Tensor, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Grade groups of clips, each group under several prompts ``(groups, P, 5)``; every clip is encoded once.

    Returns:
        Raw grades ``(groups, P, GROUP, 3)`` and the features of the clips' frames ``(groups * GROUP, T, D)``.
    """
    device, count = judge.blind_queries.device, labels.shape[1]
    texts = [caption(to_prompt(row), rng) for row in labels.flatten(0, 1).tolist() for _ in range(GROUP)]
    clips = pixels[rows.flatten()].to(device).float() / 255
    with fast_autocast(device):
        watched = judge.watch(clips)
        blind, frames = (
            part.unflatten(0, (-1, 1, GROUP)).expand(-1, count, -1, -1, -1).flatten(0, 2) for part in watched
        )
        raw: Tensor = judge.grade(blind, frames, texts).unflatten(0, (-1, count, GROUP))
    return raw, watched[1]


@torch.no_grad()
def held_out_accuracy(
    judge: PixelJudge,
    pool: Pool,
    pixels: Tensor,
    kind: str,
    seed: int,
    pipe: WanPipeline,
    reward: LatentReward | None = None,
) -> dict[str, dict[str, float]]:
    """Measure how often the judge ranks held-out pairs as the oracle does, and as the reward does.

    Args:
        judge: The judge.
        pool: Held-out clips.
        pixels: The same, decoded, uint8, ``(N, 3, T, H, W)``.
        kind: Of pairs, see `PairSampler`.
        seed: Of the choice of pairs.
        pipe: Encodes the prompts for the reward.
        reward: Compared on nearly clean latents, if there is one.

    Returns:
        For each axis ``accuracy`` and ``pairs`` (oracle ties left out) and, with a reward, ``agreement`` on them.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sampler = PairSampler(pool)
    rows, labels = sampler.draw_groups([kind] * HELD_OUT_GROUPS, rng)
    value = sampler.ratings(rows, labels)
    truth = value[:, LEFT] - value[:, RIGHT]
    clear = truth.abs() > TIE
    chunks = list(zip(rows.split(16), labels.split(16), strict=True))
    ours = torch.cat([grade_groups(judge, pixels, chosen, prompt[:, None], rng)[0] for chosen, prompt in chunks])
    ours = ours[:, 0].cpu()
    ours = (ours[:, LEFT] - ours[:, RIGHT]).sign()
    table = {
        axis: {
            "accuracy": ((ours == truth.sign()) & clear)[..., index].sum().item() / clear[..., index].sum().item(),
            "pairs": int(clear[..., index].sum()),
        }
        for index, axis in enumerate(AXES)
    }
    if reward is not None:
        raw = torch.cat([rate(reward, pool, *chunk, pipe, rng, generator, NEARLY_CLEAN) for chunk in chunks]).cpu()
        theirs = (raw[:, LEFT] - raw[:, RIGHT]).sign()
        for index, axis in enumerate(AXES):
            alike = ((ours == theirs) & clear)[..., index]
            table[axis]["agreement"] = alike.sum().item() / clear[..., index].sum().item()
    return table


@torch.no_grad()
def reading_accuracy(judge: PixelJudge, pool: Pool, pixels: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """Measure how often a faultless clip scores higher under its own prompt than with one attribute changed.

    Returns:
        For each attribute ``accuracy`` and ``pairs``, the clips whose prompts name it.
    """
    rng = random.Random(seed)
    table = {}
    for place, name in enumerate(CHOICES):
        count = len(CHOICES[name])
        named = (pool.labels[:, place] < count).nonzero()[:, 0]
        own = pool.labels[named]
        other = own.clone()
        other[:, place] = (own[:, place] + torch.tensor([rng.randrange(1, count) for _ in named])) % count
        grades = []
        for start in range(0, len(named), 32):
            clips = pixels[named[start : start + 32]].float() / 255
            texts_of = [
                [caption(to_prompt(row)) for row in labels[start : start + 32].tolist()] for labels in (own, other)
            ]
            grades.append(
                torch.stack([judge(clips.to(judge.device), texts)[:, TEXT_AXIS] for texts in texts_of]).cpu()
            )
        right, wrong = torch.cat(grades, dim=1)
        table[name] = {"accuracy": (right > wrong).float().mean().item(), "pairs": len(named)}
    return table


@torch.no_grad()
def calibrate_judge(judge: PixelJudge, pool: Pool, pixels: Tensor, seed: int) -> None:
    """Store mean and standard deviation of the raw grades over samples of the base model."""
    rng = random.Random(seed)
    rows, labels = PairSampler(pool).draw_groups(["same"] * CALIBRATION_GROUPS, rng)
    chunks = zip(rows.split(16), labels.split(16), strict=True)
    raw = torch.cat([grade_groups(judge, pixels, rows, prompt[:, None], rng)[0] for rows, prompt in chunks]).flatten(
        0, 2
    )
    judge.register_to_config(mean=raw.mean(dim=0).tolist(), std=raw.std(dim=0).tolist())
